"""Causal softmax attention.

    y_i = sum_j softmax_j( q_i . k_j / sqrt(D) ) v_j      over j <= i of the same document, i - j < window where set

Positions enter by rotation of q and k ("rope"), by a learned table added to the input ("learned"), or not at all
("none"); they count from the start of each document. Heads may share keys and values. The softmax runs in float32.

The state is a ring of M = max_len (or window) keys and values: token t of the stream lies in slot t mod M, so that the
time of every slot follows from the number of tokens seen. A stream longer than M sees its last M tokens.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.linear import linear
from paperlab.layers.rotary import rotate
from paperlab.layers.segments import UNKNOWN, document_starts, last_start, next_segment
from paperlab.limits import above, at_least, hold, one_of

SHARDING = (
    (r"mixer/(q|k|v)/kernel$", ("fsdp", "tensor")),
    (r"mixer/out/kernel$", ("tensor", "fsdp")),
)

POSITIONS = ("rope", "learned", "none")
LIMITS = {
    "kv_heads": at_least(0, "0: as many as heads"),
    "window": at_least(0, "0: all tokens"),
    "position": one_of(*POSITIONS),
    "rope_theta": above(0),
    "max_positions": at_least(1),
    "init_std": at_least(0),
}
State = dict[str, Array]


class Mixer(nn.Module):
    """Options:
    kv_heads: heads of k and v, shared by groups of query heads (0: one each).
    window: tokens that a query sees, itself included (0: all).
    position ("rope", "learned", "none"); rope_theta; max_positions: rows of the learned table, the last for all beyond.
    bias: of q, k and v.
    """

    width: int
    heads: int
    dtype: DTypeLike = jnp.float32
    kv_heads: int = 0
    window: int = 0
    position: str = "rope"
    rope_theta: float = 10_000.0
    max_positions: int = 2048
    bias: bool = False
    init_std: float = 0.02

    def setup(self) -> None:
        self.check()
        G, D = self.head_sizes()
        dense = partial(linear, dtype=self.dtype, std=self.init_std)
        self.q, self.k, self.v = (dense(n * D, bias=self.bias) for n in (self.heads, G, G))
        self.out = dense(self.width)
        if self.position == "learned":
            init = nn.initializers.normal(self.init_std)
            self.position_table = self.param("position_table", init, (self.max_positions, self.width), jnp.float32)

    @nn.nowrap
    def head_sizes(self) -> tuple[int, int]:
        """(G, D): number of key-value heads, channels of a head."""
        return self.kv_heads or self.heads, self.width // self.heads

    @nn.nowrap
    def check(self) -> None:
        """Raises ConfigError for options out of range, or that do not go together."""
        hold({name: getattr(self, name) for name in LIMITS}, LIMITS, "config.mixers.attention.")
        heads, width = self.heads, self.width
        if width % heads:
            raise ConfigError(f"config.model.heads={heads} must divide config.model.width={width}: change one of them")
        if self.kv_heads and heads % self.kv_heads:
            raise ConfigError(
                f"config.mixers.attention.kv_heads={self.kv_heads} must divide config.model.heads={heads} (0: as many)"
            )
        if self.position == "rope" and width // heads % 2:
            raise ConfigError(
                f"config.model.heads={heads}: rotation (config.mixers.attention.position='rope') needs an even number of "
                f"channels a head, width / heads is {width // heads}"
            )

    def __call__(
        self,
        x_BxTxD: Array,
        *,
        state: State | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, State | None]:
        B, T, _ = x_BxTxD.shape
        segment = None if state is None else state["segment"]
        zero = jnp.zeros((B,), jnp.int32)
        seen, start = (zero, zero) if state is None else (state["seen"], state["start"])
        time = seen[:, None] + jnp.arange(T)
        starts = jnp.broadcast_to(start[:, None], (B, T))
        if segment_ids is not None:
            starts = last_start(document_starts(segment_ids, segment), time, start)
        q, k, v = self._projections(x_BxTxD, time - starts if positions is None else positions)
        if state is None:
            return self._attend(q, k, v, self._mask(time, starts, time) if segment_ids is not None else None), None
        slots = _slot_times(seen, state["k"].shape[1])
        mask = self._mask(time, starts, jnp.concatenate([slots, time], axis=1))
        keys, values = (jnp.concatenate([state[n], new.astype(state[n].dtype)], 1) for n, new in (("k", k), ("v", v)))
        y = self._attend(q, keys.astype(k.dtype), values.astype(v.dtype), mask)
        return y, {
            "k": _write(state["k"], k, seen),
            "v": _write(state["v"], v, seen),
            "seen": seen + T,
            "start": starts[:, -1],
            "segment": next_segment(segment_ids, state["segment"]),
        }

    def step(self, x_BxD: Array, state: State, position: Array | None = None) -> tuple[Array, State]:
        seen, start = state["seen"], state["start"]
        q, k, v = self._projections(x_BxD[:, None], (seen - start if position is None else position)[:, None])
        keys, values = _write(state["k"], k, seen), _write(state["v"], v, seen)
        mask = self._mask(seen[:, None], start[:, None], _slot_times(seen + 1, keys.shape[1]))
        y = self._attend(q, keys.astype(q.dtype), values.astype(q.dtype), mask)
        return y[:, 0], {**state, "k": keys, "v": values, "seen": seen + 1}

    def keys_values(self, x_BxkxD: Array, positions_Bxk: Array) -> dict[str, Array]:
        """What these tokens put into a cache: {"k", "v"}, [B, k, G, D]."""
        _, k, v = self._projections(x_BxkxD, positions_Bxk)
        return {"k": k, "v": v}

    def read(
        self,
        x_BxkxD: Array,
        memory: dict[str, Array],
        *,
        positions: Array,
        times: Array,
        segment_ids: Array | None = None,
    ) -> Array:
        """Attention of some tokens over the keys and values of all T tokens of their row.

        Args:
          memory: `keys_values` of all tokens, [B, T, G, D].
          positions, times: [B, k], of the queries: within their document, and within the row.
          segment_ids: [B, T], of the row.
        """
        (B, k, _), T = x_BxkxD.shape, memory["k"].shape[1]
        all_times, starts = jnp.broadcast_to(jnp.arange(T), (B, T)), jnp.zeros((B, k), jnp.int32)
        if segment_ids is not None:
            of_all = last_start(document_starts(segment_ids), all_times, jnp.zeros((B,), jnp.int32))
            starts = jnp.take_along_axis(of_all, times, 1)
        q, _, _ = self._projections(x_BxkxD, positions)
        mask = self._mask(times, starts, all_times)
        return self._attend(q, memory["k"].astype(q.dtype), memory["v"].astype(q.dtype), mask)

    def read_step(self, x_BxD: Array, state: State, position: Array | None = None) -> Array:
        """One token that reads a cache in which its own key stands already (as another loop's `step` left it)."""
        seen, start = state["seen"], state["start"]
        q, _, _ = self._projections(x_BxD[:, None], (seen - 1 - start if position is None else position)[:, None])
        mask = self._mask(seen[:, None] - 1, start[:, None], _slot_times(seen, state["k"].shape[1]))
        return self._attend(q, state["k"].astype(q.dtype), state["v"].astype(q.dtype), mask)[:, 0]

    @staticmethod
    def inherit(state: State, other: State) -> State:
        """The cache with the last token of another one added, where this one did not see it."""
        newest = (other["seen"] - 1) % other["k"].shape[1]
        rows = jnp.arange(newest.shape[0])
        new = {name: _write(state[name], other[name][rows, newest][:, None], state["seen"]) for name in ("k", "v")}
        return {**state, **new, "seen": state["seen"] + 1}

    @nn.nowrap
    def zero_state(self, batch: int, max_len: int = 0, dtype: DTypeLike | None = None) -> State:
        """An empty cache for `max_len` tokens (`window` of them where that is less), in `dtype`."""
        G, D = self.head_sizes()
        slots = min(max_len, self.window) if self.window else max_len
        if slots < 1:
            raise ValueError(f"attention: zero_state needs max_len >= 1, the number of tokens to hold; got {max_len}")
        # Distinct buffers for k and v, so that a jitted step may be given (donated) both.
        return {
            "k": jnp.zeros((batch, slots, G, D), dtype or self.dtype),
            "v": jnp.zeros((batch, slots, G, D), dtype or self.dtype),
            "seen": jnp.zeros((batch,), jnp.int32),
            "start": jnp.zeros((batch,), jnp.int32),
            "segment": jnp.full((batch,), UNKNOWN, jnp.int32),
        }

    def _projections(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        """q [B,T,H,D], k [B,T,G,D], v [B,T,G,D]."""
        if self.position == "learned":
            table = self.position_table.astype(self.dtype)
            x = x + table[jnp.minimum(positions, self.max_positions - 1)]
        G, D = self.head_sizes()
        q, k, v = (f(x).reshape(*x.shape[:2], n, D) for f, n in ((self.q, self.heads), (self.k, G), (self.v, G)))
        if self.position == "rope":
            q, k = rotate(q, positions, self.rope_theta), rotate(k, positions, self.rope_theta)
        return q, k, v

    def _mask(self, time_BxT: Array, starts_BxT: Array, key_time_BxS: Array) -> Array:
        """bool [B, 1, T, S]: keys not later, of the same document, within the window."""
        time, starts, key = time_BxT[:, :, None], starts_BxT[:, :, None], key_time_BxS[:, None, :]
        mask = (key <= time) & (key >= starts)
        if self.window:
            mask &= time - key < self.window
        return mask[:, None]

    def _attend(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        if mask is not None:
            y = jax.nn.dot_product_attention(q, k, v, mask=mask)
        else:
            window = (self.window - 1, 0) if self.window else None
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=window)
        return self.out(y.reshape(*y.shape[:2], -1))


def _slot_times(seen_B: Array, slots: int) -> Array:
    """int32 [B, M]: the stream time of what lies in each slot of the ring, -1 where nothing does."""
    last = seen_B[:, None] - 1
    return jnp.maximum(last - (last - jnp.arange(slots)) % slots, -1)


def _write(ring_BxMxGxD: Array, new_BxTxGxD: Array, seen_B: Array) -> Array:
    """Puts the last M of the new tokens into their slots."""
    B, M = ring_BxMxGxD.shape[:2]
    T = new_BxTxGxD.shape[1]
    n = min(T, M)
    slot = (seen_B[:, None] + jnp.arange(T - n, T)) % M
    new = new_BxTxGxD[:, T - n :].astype(ring_BxMxGxD.dtype)
    return ring_BxMxGxD.at[jnp.arange(B)[:, None], slot].set(new, unique_indices=True)

"""One step of the recurrence: what happens to all positions between two signals.

    layer, post    a = LN(z + MHSA(z)),  h = LN(a + Transition(a))                       the paper, eq. 4 and 5
    layer, pre     a = z + MHSA(LN z),   h = a + Transition(LN a)                        its code; one more LN at the end

`z` is the state with its signals; a decoder attends to the encoder's last state between the two. What becomes of the state:

    basic      s <- h
    highway    s <- (1 - g) s + g h,    g = sigmoid(W LN[chosen of s, h, i] + b), b = -1; or a carry gate of its own, b = 1
    skip       s <- (1 - g) i + g h,    i the input of the recurrence
    dwa        h is added to a memory; the next z is their weighted sum, softmax over depth, one weight a channel
    gru        x = LN(attention(z)),  z', r = sigmoid(W[x, s] + 1),  c = tanh(W[x, r s]),  s <- LN((1 - z') x + z' c)
    lstm       x likewise,  m <- sigmoid(f + 1) m + sigmoid(i) tanh(g),  s <- LN(tanh(m) o), gates from [x, s]

Sources: arXiv 1807.03819, section 2.1; the variants: the authors' code. Its slips are not kept: gates there read an option that is
nowhere defined, and its weights of depth-wise attention are a softmax over channels.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.linear import xavier_linear
from paperlab.layers.norms import LayerNorm
from paperlab.papers.universal_transformer.attention import Attention, Cache, Sight
from paperlab.papers.universal_transformer.transition import Transition

NORMS = ("post", "pre")
RECURRENCES = ("basic", "act", "highway", "skip", "dwa", "gru", "lstm")
GATED = ("highway", "skip")
CELLS = ("gru", "lstm")
NORM_EPS = 1e-6


class Layer(nn.Module):
    """Attention to the row itself, to a memory where `cross`, and the transition, each with its norm and residual sum."""

    width: int
    hidden: int
    heads: int
    norm: str = "post"
    transition: str = "fc"
    causal: bool = False
    cross: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    relu_dropout: float = 0.0
    norm_eps: float = NORM_EPS
    attention_only: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        attention = (self.width, self.heads, self.attention_dropout, self.dtype)
        self.attention, self.attention_norm = Attention(*attention), LayerNorm(self.norm_eps)
        if self.cross:
            self.cross_attention, self.cross_norm = Attention(*attention), LayerNorm(self.norm_eps)
        if not self.attention_only:
            self.transition_norm = LayerNorm(self.norm_eps)
            self.ffn = Transition(self.width, self.hidden, self.transition, self.causal, self.relu_dropout, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self, z_BxTxD: Array, sight: Sight, memory: Any = None, seen: Any = None, cache: Any = None
    ) -> tuple[Array, Any]:
        """The row after this layer, and the cache.

        Args:
          memory: `memory_keys` of what the decoder attends to.
          seen: bool [B, 1, S], which of the memory's places hold tokens; None: all.
          cache: `zero_cache`, for rows that come in parts.
        """
        after = {}

        def attend(x: Array) -> Array:
            y, after["attention"] = self.attention(x, sight, cache and cache["attention"])
            return y

        def transit(x: Array) -> Array:
            y, after["transition"] = self.ffn(x, sight, None if cache is None else cache["transition"])
            return y

        x = self._residual(z_BxTxD, attend, self.attention_norm)
        if self.cross:
            x = self._residual(x, lambda x: self.cross_attention.read(x, memory, seen), self.cross_norm)
        if not self.attention_only:
            x = self._residual(x, transit, self.transition_norm)
        return x, None if cache is None else after

    def memory_keys(self, memory_BxSxD: Array) -> Cache:
        """Keys and values of what a decoder attends to: the same in every step, so made once."""
        return self.cross_attention.keys_values(memory_BxSxD)

    @nn.nowrap
    def zero_cache(self, batch: int, slots: int, dtype: DTypeLike | None = None) -> Any:
        """Empty caches of `slots` tokens."""
        cache = {
            "attention": Attention(self.width, self.heads, dtype=self.dtype, parent=None).zero_cache(
                batch, slots, dtype
            )
        }
        if not self.attention_only:
            ffn = Transition(self.width, self.hidden, self.transition, dtype=self.dtype, parent=None)
            cache["transition"] = ffn.zero_tails(batch, dtype)
        return cache

    def _residual(self, x: Array, f: Any, norm: LayerNorm) -> Array:
        drop = lambda y: self.drop(y, deterministic=not self.has_rng("dropout"))  # noqa: E731
        return x + drop(f(norm(x))) if self.norm == "pre" else norm(x + drop(f(x)))


class Step(nn.Module):
    """`layers` layers with these options, and how their result enters the state.

    `gate_inputs`: which of "s", "t" (h above) and "i" gates read.
    """

    width: int
    options: tuple[tuple[str, Any], ...]
    layers: int = 1
    recurrence: str = "basic"
    gate_inputs: str = "sti"
    own_carry: bool = False
    norm_eps: float = NORM_EPS
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.inner = [self._layer() for _ in range(self.layers)]
        dense = partial(xavier_linear, dtype=self.dtype, gain=1.0)
        if self.recurrence in GATED:
            self.gate_norm, self.gate = LayerNorm(self.norm_eps), dense(self.width)
            self.gate_bias = self.param("gate_bias", nn.initializers.constant(-1.0), (self.width,), jnp.float32)
            if self.own_carry:
                self.carry_gate = dense(self.width)
                self.carry_bias = self.param("carry_bias", nn.initializers.ones, (self.width,), jnp.float32)
        if self.recurrence == "dwa":
            self.depth_weight = dense(self.width, bias=True)
        if self.recurrence in CELLS:
            self.input_norm, self.output_norm = LayerNorm(self.norm_eps), LayerNorm(self.norm_eps)
            self.gates = dense((2 if self.recurrence == "gru" else 4) * self.width, bias=True)
        if self.recurrence == "gru":
            self.candidate = dense(self.width, bias=True)

    def __call__(
        self,
        carry: dict,
        z: Array,
        i: Array,
        t: Array,
        sight: Sight,
        memory: Any = None,
        seen: Any = None,
        cache: Any = None,
    ) -> tuple[dict, Any]:
        """One step.

        Args:
          carry: {"s": the state [B, T, D]}, with "m" for "lstm"; see `Recurrence`.
          z: the state with its signals; i: the input of the recurrence; t: number of the step, from 0.
          sight, memory, seen, cache: of Layer, memory and cache {"inner_0": ...}.
        """
        after, h = {}, z
        for n, layer in enumerate(self.inner):
            name = f"inner_{n}"
            h, after[name] = layer(h, sight, memory and memory[name], seen, cache and cache[name])
        s = carry["s"]
        if self.recurrence in GATED:
            kept = s if self.recurrence == "highway" else i
            read = self.gate_norm(jnp.concatenate([{"s": s, "t": h, "i": i}[name] for name in self.gate_inputs], -1))
            g = jax.nn.sigmoid(self.gate(read) + self.gate_bias.astype(h.dtype))
            c = jax.nn.sigmoid(self.carry_gate(read) + self.carry_bias.astype(h.dtype)) if self.own_carry else 1 - g
            carry = {**carry, "s": c * kept + g * h}
        elif self.recurrence in CELLS:
            carry = {**carry, **self._cell(self.input_norm(h), carry)}
        else:
            carry = {**carry, "s": h}
        return carry, None if cache is None else after

    def mix(self, states_NxBxTxD: Array, depth_NxD: Array, known: Array) -> Array:
        """Depth-wise attention: the sum of the first `known` states, weighted by a softmax over them for every channel."""
        scores = self.depth_weight(states_NxBxTxD + depth_NxD[:, None, None].astype(states_NxBxTxD.dtype))
        there = (jnp.arange(states_NxBxTxD.shape[0]) < known)[:, None, None, None]
        weights = jax.nn.softmax(jnp.where(there, scores, -jnp.inf), axis=0)
        return (weights * jnp.where(there, states_NxBxTxD, 0)).sum(0)

    def memory_keys(self, memory_BxSxD: Array) -> Any:
        """Keys and values of a decoder's memory for every layer of the step."""
        return {f"inner_{n}": layer.memory_keys(memory_BxSxD) for n, layer in enumerate(self.inner)}

    @nn.nowrap
    def zero_cache(self, batch: int, slots: int, dtype: DTypeLike | None = None) -> Any:
        """Empty caches of every layer of the step."""
        return {f"inner_{n}": self._layer(parent=None).zero_cache(batch, slots, dtype) for n in range(self.layers)}

    @nn.nowrap
    def _layer(self, **where: Any) -> Layer:
        return Layer(self.width, dtype=self.dtype, norm_eps=self.norm_eps, **dict(self.options), **where)

    def _cell(self, x: Array, carry: dict) -> dict:
        s = carry["s"]
        gates = self.gates(jnp.concatenate([x, s], -1))
        if self.recurrence == "gru":
            z, r = (jax.nn.sigmoid(part + 1.0) for part in jnp.split(gates, 2, -1))
            c = jnp.tanh(self.candidate(jnp.concatenate([x, r * s], -1)))
            return {"s": self.output_norm((1 - z) * x + z * c)}
        i, f, o, g = jnp.split(gates, 4, -1)
        m = jax.nn.sigmoid(f + 1.0) * carry["m"] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return {"s": self.output_norm(jnp.tanh(m) * jax.nn.sigmoid(o)), "m": m}

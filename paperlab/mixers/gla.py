"""Gated linear attention, the layer (arXiv 2312.06635, sections 4.1 and 4.4).

    S_t = Diag(alpha_t) S_{t-1} + k_t^T v_t,   o_t = K^-1/2 q_t S_t          per head, S in R^{K x V}
    log alpha_t = logsigmoid(x_t W_down W_up + b) / tau                        gate="channel", the paper's
    y_t = (norm(o_t) * silu(x_t W_r)) W_o

Other gates of the same recurrence: "scalar" (one data-dependent decay a head), "fixed" (RetNet's 1 - 2^(-5-head)) and
"none" (linear attention). `gate_beta` lets value channels decay too: S_t = (alpha_t^T beta_t) * S_{t-1} + k_t^T v_t.
The sequence form runs in chunks (kernels_pallas.gla); the step form keeps S [B, H, K, V] in float32 and no history.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from kernels_pallas import gla, gla_step
from kernels_pallas.gated_linear_attention.api import IMPLEMENTATIONS
from kernels_pallas.platforms import PLATFORMS, platform
from paperlab.errors import ConfigError
from paperlab.layers.activations import ACTIVATIONS, activation
from paperlab.layers.convolution import ShortConvolution
from paperlab.layers.linear import linear, xavier_linear
from paperlab.layers.norms import NORMS, at_least_float32
from paperlab.layers.segments import UNKNOWN, keep_if_continued, next_segment, runs
from paperlab.layers.sharding import by_rows
from paperlab.limits import Limit, above, at_least, hold, one_of

SHARDING = (
    (r"mixer/(q|k|v|output_gate|gate_up|beta_up)/kernel$", ("fsdp", "tensor")),
    (r"mixer/(gate_down|beta_down)/kernel$", ("fsdp", None)),
    (r"mixer/out/kernel$", ("tensor", "fsdp")),
)

GATES = ("channel", "scalar", "fixed", "none")
LIMITS = {
    "expand_k": above(0),
    "expand_v": above(0),
    "kv_heads": at_least(0, "0: as many as heads"),
    "gate": one_of(*GATES),
    "gate_low_rank": at_least(0, "0: full"),
    "gate_temperature": above(0),
    "gate_clamp": Limit(high=0, note="it bounds log alpha from below; 0: not at all"),
    "norm": one_of(*NORMS, "none"),
    "norm_eps": above(0),
    "output_gate_activation": one_of(*ACTIVATIONS),
    "feature_map": one_of(*ACTIVATIONS),
    "conv_width": at_least(1),
    "impl": one_of(*IMPLEMENTATIONS),
    "chunk": at_least(0, "a power of two, or 0: the kernel's"),
    "sub_chunk": at_least(0, "a power of two, or 0: the kernel's"),
    "weight_init": one_of("normal", "xavier"),
    "init_std": at_least(0),
}
State = dict[str, Array]


def retnet_log_decay(heads: int) -> Array:
    """log(1 - 2^(-5-i)) for head i, [heads, 1] (RetNet, arXiv 2307.08621, eq. 8)."""
    return jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=jnp.float32))))[:, None]


class Mixer(nn.Module):
    """Options:
    expand_k, expand_v: d_k / width and d_v / width.
    kv_heads: heads of k, v and gate, shared by groups of query heads (0: one each).
    gate, gate_low_rank (0: full), gate_temperature (tau), gate_clamp (lower bound of log alpha; 0: none), gate_beta.
    norm ("rms", "layer", "none"), norm_affine, norm_per_head (own weights for each head), norm_eps: of o, head by head.
    use_output_gate, output_gate_activation, output_gate_bias; feature_map of q and k.
    short_conv: depthwise causal convolution of conv_width on q, k and v.
    impl, chunk, sub_chunk: of kernels_pallas.gla (0: its default).
    weight_init: "normal", N(0, init_std), or "xavier" (gain 2^-2.5 on q, k and gates, as in the authors' module).
    """

    width: int
    heads: int
    dtype: DTypeLike = jnp.float32
    expand_k: float = 0.5
    expand_v: float = 1.0
    kv_heads: int = 0
    gate: str = "channel"
    gate_low_rank: int = 16
    gate_temperature: float = 16.0
    gate_clamp: float = 0.0
    gate_beta: bool = False
    norm: str = "rms"
    norm_affine: bool = True
    norm_per_head: bool = False
    norm_eps: float = 1e-5
    use_output_gate: bool = True
    output_gate_activation: str = "silu"
    output_gate_bias: bool = False
    feature_map: str = "identity"
    short_conv: bool = False
    conv_width: int = 4
    impl: str = "auto"
    chunk: int = 0
    sub_chunk: int = 0
    weight_init: str = "normal"
    init_std: float = 0.02

    def setup(self) -> None:
        self.check()
        G, K, V = self.head_sizes()
        dense = partial(linear, dtype=self.dtype, std=self.init_std)
        small = partial(xavier_linear, dtype=self.dtype) if self.weight_init == "xavier" else dense
        self.q, self.k, self.v = small(self.heads * K), small(G * K), dense(G * V)
        if self.gate == "channel" and self.gate_low_rank:
            self.gate_down = small(self.gate_low_rank)
        if self.gate in ("channel", "scalar"):
            self.gate_up = small(G * (K if self.gate == "channel" else 1), bias=True)
        if self.gate_beta and self.gate_low_rank:
            self.beta_down = small(self.gate_low_rank)
        if self.gate_beta:
            self.beta_up = small(G * V, bias=True)
        if self.short_conv:
            convolution = partial(ShortConvolution, width=self.conv_width, dtype=self.dtype)
            self.q_conv, self.k_conv = convolution(self.heads * K), convolution(G * K)
            self.v_conv = convolution(G * V)
        if self.norm != "none":
            shape = (self.heads, V) if self.norm_per_head else (V,)
            self.out_norm = NORMS[self.norm](self.norm_eps, self.norm_affine, shape)
        if self.use_output_gate:
            self.output_gate = dense(self.heads * V, bias=self.output_gate_bias)
        self.out = dense(self.width)

    @nn.nowrap
    def head_sizes(self) -> tuple[int, int, int]:
        """(G, K, V): number of key-value heads, channels of a key head, channels of a value head."""
        K, V = (round(self.width * expand) // self.heads for expand in (self.expand_k, self.expand_v))
        return self.kv_heads or self.heads, K, V

    @nn.nowrap
    def check(self) -> None:
        """Raises ConfigError for options out of range, or that do not go together."""
        hold({name: getattr(self, name) for name in LIMITS}, LIMITS, "config.mixers.gla.")
        heads, width = self.heads, self.width
        channels = [round(width * expand) for expand in (self.expand_k, self.expand_v)]
        if any(n % heads or n < heads for n in channels):
            raise ConfigError(
                f"config.model.heads={heads}: width={width} times config.mixers.gla.expand_k={self.expand_k} and times "
                f"expand_v={self.expand_v} are {channels[0]} and {channels[1]}, and must both be multiples of heads={heads}"
            )
        if self.kv_heads and heads % self.kv_heads:
            raise ConfigError(
                f"config.mixers.gla.kv_heads={self.kv_heads} must divide config.model.heads={heads} (0: as many)"
            )
        for name in ("chunk", "sub_chunk"):
            size = getattr(self, name)
            if size & (size - 1):
                raise ConfigError(f"config.mixers.gla.{name}={size} must be a power of two (or 0: the kernel's)")
        if self.chunk and self.sub_chunk > self.chunk:
            raise ConfigError(
                f"config.mixers.gla.sub_chunk={self.sub_chunk} must not be larger than config.mixers.gla.chunk={self.chunk}"
            )

    def __call__(
        self,
        x_BxTxD: Array,
        *,
        state: State | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, State | None]:
        before = None if state is None else keep_if_continued(state, segment_ids, state["segment"])
        q, k, v, tails = self._projections(x_BxTxD, before, state, segment_ids)
        log_alpha, log_beta = self._log_alpha(x_BxTxD), self._log_beta(x_BxTxD)
        initial = None if before is None else before["S"]
        try:
            o, after = self._recurrence(q, k, v, log_alpha, log_beta, initial, segment_ids, state is not None)
        except ValueError as error:  # no kernel for this device or these sizes
            raise ConfigError(f"config.mixers.gla.{str(error).removeprefix('gla: ')}") from error
        self._sow(k, log_alpha, o)
        y = self._output(o, x_BxTxD)
        if state is None or after is None:
            return y, None
        return y, {"S": after, "segment": next_segment(segment_ids, state["segment"]), **tails}

    def _recurrence(
        self,
        q: Array,
        k: Array,
        v: Array,
        log_alpha: Array | None,
        log_beta: Array | None,
        initial: Array | None,
        segment_ids: Array | None,
        keep: bool,
    ) -> tuple[Array, Array | None]:
        """`gla` on all rows, or by a kernel on each device's own."""
        gates = (log_alpha, log_beta)
        whole = [g if g is not None and g.ndim == 2 else None for g in gates]  # the same for all rows

        def run(q: Array, k: Array, v: Array, own: list, initial: Array | None, segment_ids: Array | None) -> tuple:
            log_alpha, log_beta = (g if o is None else o for g, o in zip(whole, own, strict=True))
            return gla(
                q,
                k,
                v,
                log_alpha,
                log_beta=log_beta,
                initial_state=initial,
                output_final_state=keep,
                segment_ids=segment_ids,
                chunk=self.chunk or None,
                sub_chunk=self.sub_chunk or None,
                impl=self.impl,
            )

        own = [g if w is None else None for g, w in zip(gates, whole, strict=True)]
        kernel = self.impl == "interpret" or (self.impl in ("auto", "pallas") and platform() in PLATFORMS)
        arrays = (q, k, v, own, initial, segment_ids)
        return by_rows(run, *arrays) if kernel else run(*arrays)

    def step(self, x_BxD: Array, state: State, position: Array | None = None) -> tuple[Array, State]:
        del position  # the recurrence knows the order
        x = x_BxD[:, None]
        q, k, v, tails = self._projections(x, state, state, None)
        log_alpha, log_beta = self._log_alpha(x), self._log_beta(x)
        if log_alpha is not None and log_alpha.ndim == 4:
            log_alpha = log_alpha[:, 0]
        log_beta = None if log_beta is None else log_beta[:, 0]
        o, S = gla_step(q[:, 0], k[:, 0], v[:, 0], log_alpha, state["S"], log_beta=log_beta)
        return self._output(o, x_BxD), {"S": S, "segment": state["segment"], **tails}

    @nn.nowrap
    def zero_state(self, batch: int, max_len: int = 0, dtype: DTypeLike | None = None) -> State:
        """S, the id of the last document and the convolutions' tails; its size does not depend on `max_len`."""
        del max_len, dtype  # always float32: S sums over the whole history
        G, K, V = self.head_sizes()
        state = {
            "S": jnp.zeros((batch, self.heads, K, V), jnp.float32),
            "segment": jnp.full((batch,), UNKNOWN, jnp.int32),
        }
        if self.short_conv:
            for name, features in (("q_conv", self.heads * K), ("k_conv", G * K), ("v_conv", G * V)):
                state[name] = jnp.zeros((batch, self.conv_width - 1, features), jnp.float32)
        return state

    def _projections(
        self, x: Array, before: State | None, state: State | None, segment_ids: Array | None
    ) -> tuple[Array, Array, Array, State]:
        """q [B,T,H,K], k [B,T,G,K], v [B,T,G,V] and the new tails of their convolutions."""
        G, K, V = self.head_sizes()
        B, T, _ = x.shape
        projected = {"q": self.q(x), "k": self.k(x), "v": self.v(x)}
        tails: State = {}
        if self.short_conv:
            tails = self.zero_state(B) if before is None else before
            carried = None if state is None else state["segment"]
            documents = None if segment_ids is None else runs(segment_ids, carried)
            convolutions = {"q": self.q_conv, "k": self.k_conv, "v": self.v_conv}
            done = {n: conv(projected[n], tails[f"{n}_conv"], documents) for n, conv in convolutions.items()}
            projected = {n: y for n, (y, _) in done.items()}
            tails = {f"{n}_conv": tail for n, (_, tail) in done.items()}
        phi = activation(self.feature_map, "feature_map")
        q, k = phi(projected["q"]).reshape(B, T, self.heads, K), phi(projected["k"]).reshape(B, T, G, K)
        return q, k, projected["v"].reshape(B, T, G, V), tails

    def _log_alpha(self, x: Array) -> Array | None:
        """[B,T,G,K] or [B,T,G,1] from the data, [G,1] constant, or None."""
        if self.gate == "none":
            return None
        if self.gate == "fixed":
            return retnet_log_decay(self.kv_heads or self.heads)
        down = self.gate_down(x) if self.gate == "channel" and self.gate_low_rank else x
        return self._log_gate(self.gate_up(down))

    def _log_beta(self, x: Array) -> Array | None:
        if not self.gate_beta:
            return None
        return self._log_gate(self.beta_up(self.beta_down(x) if self.gate_low_rank else x))

    def _log_gate(self, logits: Array) -> Array:
        log_gate = jax.nn.log_sigmoid(at_least_float32(logits)) / self.gate_temperature
        if self.gate_clamp:
            log_gate = jnp.maximum(log_gate, self.gate_clamp)
        return log_gate.reshape(*logits.shape[:-1], self.kv_heads or self.heads, -1)

    def _output(self, o: Array, x: Array) -> Array:
        """o [..., H, V] and x [..., D] -> [..., D]."""
        if self.norm != "none":
            o = self.out_norm(o)
        o = o.reshape(*o.shape[:-2], -1)
        if self.use_output_gate:
            o = o * activation(self.output_gate_activation, "output_gate_activation")(self.output_gate(x))
        return self.out(o)

    def _sow(self, k: Array, log_alpha: Array | None, o: Array) -> None:
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            log_alpha = jnp.zeros(()) if log_alpha is None else log_alpha
            self.sow("intermediates", "log_alpha", jnp.broadcast_to(log_alpha, k.shape))
            self.sow("intermediates", "core_out", o)

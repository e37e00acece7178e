"""pLSTM along a sequence (arXiv 2506.11997, section 3, appendices A.3, A.5, A.6): a linear memory, gated by the input alone.

    C_{t+1} = T_t C_t + S_t k_t v_t^T,   o_t = DK^-1/2 (q_t M_t C_t + q_t D_t k_t v_t)     per head, C in R^{JT x DK x DV}
    S, M, D = sigmoid(b + W c_t),   T = O diag(tanh(5 (b + W c_t))) I,   q, k from c_t, v from x_t
    c_t     = x_t through a short causal convolution,   y_t = norm(o_t) W_o + p * c_t

The mark M reads the memory before the own input. With JT = 1 the transition is a number between -1 and 1; with JT > 1 it turns a
state of JT copies of the memory, O and I orthogonal, so that states can be tracked (parity, words of a group). The sequence form
runs in blocks merged level by level (paperlab.recurrence.line); the step form keeps C in float32 and no history.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.convolution import ShortConvolution
from paperlab.layers.gates import (
    DIRECT_BIAS,
    MARK_BIAS,
    SOURCE_BIAS,
    TRANSITION_BIAS,
    WEIGHTS,
    BlockLinear,
    Gate,
)
from paperlab.layers.norms import RMSNorm
from paperlab.layers.orthogonal import ORTHOGONAL, TERMS
from paperlab.layers.segments import UNKNOWN, keep_if_continued, next_segment, runs
from paperlab.layers.sharding import by_rows
from paperlab.layers.transition import EIGENVALUES, Transition
from paperlab.limits import above, at_least, hold, one_of
from paperlab.recurrence.line import IMPLEMENTATIONS, Gates, line_memory, line_step

SHARDING = (
    (r"mixer/(q|k|v)/kernel$", ("tensor", "fsdp", None)),
    (r"mixer/out/kernel$", (None, "tensor", "fsdp")),
)

READERS = "STMDQKVP"  # source, transition, mark, direct, query, key, value, passthrough
LIMITS = {
    **{name: at_least(1) for name in ("JT", "JK", "JV", "JQ", "JO", "conv_width", "terms", "gate_blocks")},
    "DK": at_least(0, "0: width / (heads JK)"),
    "DV": at_least(0, "0: width / (heads JO)"),
    "blocks": at_least(0, "0: as many as heads"),
    "gate_weights": one_of("zeros", "normal"),
    "eigenvalues": one_of(*EIGENVALUES),
    "factor": above(0),
    "orthogonal": one_of(*ORTHOGONAL),
    "spread": at_least(0),
    "norm_eps": above(0),
    "levels": at_least(0, "0: the measured one"),
    "impl": one_of(*IMPLEMENTATIONS),
    "init_std": at_least(0, "0: small-normal"),
}
State = dict[str, Array]


class Mixer(nn.Module):
    """Options:
    JT, JK, JV, JQ, JO: state-tracking sizes of transition, key, value, query and output (all 1: the plain model).
    DK, DV: channels of a key and a value (0: width / (heads JK) and width / (heads JO)).
    gate_inputs: which of the gates S, T, M, D read the input, the others are bias-only; gate_weights: how their maps start ("zeros"
      or "normal"); gate_blocks: blocks on the diagonal of these maps.
    source_bias, mark_bias, direct_bias, transition_bias: where their logits start.
    eigenvalues ("tanh", "logsigmoid", "expexp") with factor, orthogonal ("exponential" with terms, "householder", "qr",
      "qr_lapack"), symmetric, spread (of O and I around the identity at the start): of the transition.
    blocks: of the maps of q, k and v on the diagonal (0: as many as heads; 1: dense); bias: whether they have one; tie_query_key.
    short_conv: causal depthwise convolution of conv_width; conv_inputs: who reads it instead of the input, letters of STMDQKVP.
    passthrough: adds what P reads, times a learnt weight for each channel, to the output.
    norm: RMSNorm of every head with norm_eps.
    impl, levels: of the recurrence (paperlab.recurrence.line); blocks of 2^levels steps, 0: the measured length.
    init_std: of all projections, 0: small-normal, sqrt(2 / (5 fan_in)).
    """

    width: int
    heads: int
    dtype: DTypeLike = jnp.float32
    JT: int = 4
    JK: int = 1
    JV: int = 4
    JQ: int = 1
    JO: int = 4
    DK: int = 0
    DV: int = 0
    gate_inputs: str = "STMD"
    gate_weights: str = "zeros"
    gate_blocks: int = 1
    source_bias: float = SOURCE_BIAS
    mark_bias: float = MARK_BIAS
    direct_bias: float = DIRECT_BIAS
    transition_bias: float = TRANSITION_BIAS
    eigenvalues: str = "tanh"
    factor: float = 5.0
    orthogonal: str = "exponential"
    terms: int = TERMS
    symmetric: bool = False
    spread: float = 0.0
    blocks: int = 0
    bias: bool = True
    tie_query_key: bool = False
    short_conv: bool = True
    conv_width: int = 4
    conv_inputs: str = "STMDQKP"
    passthrough: bool = True
    norm: bool = True
    norm_eps: float = 1e-5
    impl: str = "auto"
    levels: int = 0
    init_std: float = 0.0

    def setup(self) -> None:
        self.check()
        H, J = self.heads, self
        DK, DV = self.channels()

        def gate(letter: str, shape: tuple[int, ...], bias: float) -> Gate:
            return Gate(shape, bias, weights=self._weights(letter), blocks=self.gate_blocks)

        self.source = gate("S", (H, J.JT, J.JK, J.JV), self.source_bias)
        self.mark = gate("M", (H, J.JO, J.JQ, J.JT), self.mark_bias)
        self.direct = gate("D", (H, J.JO, J.JQ, J.JK, J.JV), self.direct_bias)
        self.transition = Transition(
            heads=H,
            JT=self.JT,
            eigenvalues=self.eigenvalues,
            factor=self.factor,
            bias=self.transition_bias,
            orthogonal=self.orthogonal,
            terms=self.terms,
            symmetric=self.symmetric,
            spread=self.spread,
            weights=self._weights("T"),
            blocks=self.gate_blocks,
        )
        init = nn.initializers.normal(self.init_std) if self.init_std else None
        linear = partial(BlockLinear, blocks=self.blocks or H, use_bias=self.bias, dtype=self.dtype, kernel_init=init)
        self.q, self.v = linear(H * DK * self.JQ), linear(H * DV * self.JV)
        if not self.tie_query_key:
            self.k = linear(H * DK * self.JK)
        if self.short_conv:
            self.conv = ShortConvolution(
                self.width, self.conv_width, "identity", jnp.promote_types(self.dtype, jnp.float32)
            )
        if self.norm:
            self.out_norm = RMSNorm(self.norm_eps, shape=(H, DV * self.JO))
        self.out = BlockLinear(self.width, dtype=self.dtype, kernel_init=init)
        if self.passthrough:
            self.through = self.param("through", nn.initializers.ones, (self.width,), jnp.float32)

    @nn.nowrap
    def channels(self) -> tuple[int, int]:
        """(DK, DV) of a head."""
        return self.DK or self.width // (self.heads * self.JK), self.DV or self.width // (self.heads * self.JO)

    @nn.nowrap
    def _weights(self, letter: str) -> str:
        return self.gate_weights if letter in self.gate_inputs else WEIGHTS[0]

    @nn.nowrap
    def check(self) -> None:
        """Raises ConfigError for options out of range, or that do not go together."""
        where = "config.mixers.plstm."
        hold({name: getattr(self, name) for name in LIMITS}, LIMITS, where)
        for name, known in (("gate_inputs", READERS[:4]), ("conv_inputs", READERS)):
            value = getattr(self, name)
            if set(value) - set(known) or len(set(value)) < len(value):
                raise ConfigError(f"{where}{name}={value!r}: some of the letters {known}, each at most once")
        for own, J, size in (("DK", "JK", self.JK), ("DV", "JO", self.JO)):
            if not getattr(self, own) and self.width % (self.heads * size):
                raise ConfigError(
                    f"{where}{J}={size}: times config.model.heads={self.heads} must divide width={self.width}, or give {where}{own}"
                )
        if self.tie_query_key and self.JQ != self.JK:
            raise ConfigError(f"{where}tie_query_key=True: JQ={self.JQ} and JK={self.JK} must then be equal")
        DK, DV = self.channels()
        blocks = self.blocks or self.heads
        sizes = (self.width, self.heads * DK * self.JQ, self.heads * DK * self.JK, self.heads * DV * self.JV)
        if any(n % blocks for n in sizes):
            raise ConfigError(f"{where}blocks={blocks}: must divide width and the outputs of q, k and v, {sizes}")
        lines = [
            (self.JT, self.JK * self.JV, "S"),
            (self.JO * self.JQ, self.JT, "M"),
            (self.JO * self.JQ * self.JK, self.JV, "D"),
        ]
        gates = [self.heads * a * b for a, b, letter in lines if letter in self.gate_inputs]
        gates += [self.heads * self.JT] if "T" in self.gate_inputs else []
        if any(n % self.gate_blocks for n in (self.width, *gates)):
            raise ConfigError(
                f"{where}gate_blocks={self.gate_blocks}: must divide width={self.width} and the numbers of gates {gates}"
            )

    def __call__(
        self,
        x_BxTxD: Array,
        *,
        state: State | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, State | None]:
        del positions  # the recurrence knows the order
        before = None if state is None else keep_if_continued(state, segment_ids, state["segment"])
        carried = None if state is None else state["segment"]
        q, k, v, gates, direct, through, tail = self._parts(x_BxTxD, before, carried, segment_ids)
        first = lambda x: jnp.moveaxis(x, 2, 1)  # noqa: E731  [B, T, H, ...] -> [B, H, T, ...]
        arrays = (first(q), first(k), first(v), Gates(*map(first, gates)), first(direct))
        entering = None if before is None else before["C"]
        try:
            o, C = self._recurrence(arrays, entering, segment_ids)
        except ValueError as error:  # no kernel for this device or these sizes
            raise ConfigError(f"config.mixers.plstm.{error}") from error
        y = self._output(jnp.moveaxis(o, 1, 2), through)
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            self.sow("intermediates", "gates", gates)
        if state is None:
            return y, None
        return y, {"C": C, "segment": next_segment(segment_ids, state["segment"]), **tail}

    def _recurrence(self, arrays: tuple, entering: Array | None, segment_ids: Array | None) -> tuple[Array, Array]:
        """`line_memory` on all rows, or by a kernel on each device's own."""

        def run(q: Array, k: Array, v: Array, gates: Gates, direct: Array, entering: Array | None, ids: Array | None):
            documents = None if ids is None else ids[:, None]
            chunk = 1 << self.levels if self.levels else 0
            return line_memory(
                q, k, v, gates, direct, entering=entering, segment_ids=documents, impl=self.impl, chunk=chunk
            )

        every = (*arrays, entering, segment_ids)
        return by_rows(run, *every) if self.impl == "pallas" else run(*every)

    def step(self, x_BxD: Array, state: State, position: Array | None = None) -> tuple[Array, State]:
        del position
        *parts, tail = self._parts(x_BxD[:, None], state, state["segment"], None)
        q, k, v, gates, direct, through = jax.tree.map(lambda x: x[:, 0], tuple(parts))
        o, C = line_step(q, k, v, gates, direct, state["C"])
        return self._output(o, through), {"C": C, "segment": state["segment"], **tail}

    @nn.nowrap
    def zero_state(self, batch: int, max_len: int = 0, dtype: DTypeLike | None = None) -> State:
        """C [B,H,DK,DV,JT], the id of the last document and the convolution's tail; its size does not depend on `max_len`."""
        del max_len, dtype  # always float32: C sums over the whole history
        DK, DV = self.channels()
        state = {
            "C": jnp.zeros((batch, self.heads, DK, DV, self.JT), jnp.float32),
            "segment": jnp.full((batch,), UNKNOWN, jnp.int32),
        }
        if self.short_conv:
            state["conv"] = jnp.zeros((batch, self.conv_width - 1, self.width), jnp.float32)
        return state

    def _parts(self, x: Array, before: State | None, carried: Array | None, segment_ids: Array | None) -> tuple:
        """q, k, v [B,T,H,D,J], gates and direct [B,T,H,...], what passes through [B,T,D], and the convolution's new tail."""
        B, T, _ = x.shape
        DK, DV = self.channels()
        c, tail = x, {}
        if self.short_conv:
            old = self.zero_state(B)["conv"] if before is None else before["conv"]
            c, new = self.conv(x, old, None if segment_ids is None else runs(segment_ids, carried))
            tail = {"conv": new}

        def read(letter: str) -> Array:
            return c if letter in self.conv_inputs else x

        q = self.q(read("Q")).reshape(B, T, self.heads, DK, self.JQ)
        k = q if self.tie_query_key else self.k(read("K")).reshape(B, T, self.heads, DK, self.JK)
        v = self.v(read("V")).reshape(B, T, self.heads, DV, self.JV)
        gates = Gates(self.source(read("S")), self.transition(read("T")), self.mark(read("M")))
        return q, k, v, gates, self.direct(read("D")), read("P") if self.passthrough else None, tail

    def _output(self, o: Array, through: Array | None) -> Array:
        """o [..., H, DV, JO] -> [..., D]."""
        o = o.reshape(*o.shape[:-2], -1)
        if self.norm:
            o = self.out_norm(o)
        y = self.out(o.reshape(*o.shape[:-2], -1))
        return y if through is None else y + (through * self.through).astype(y.dtype)

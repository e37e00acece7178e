"""ParaRNN's layer: a nonlinear recurrence trained in parallel (arXiv 2510.21450, sections 2 and 3, appendix C.1, figure 9).

    u, g = x W_in                               the block:  linear, short causal convolution with SiLU on u, the cell,
    v_t = B silu(conv(u))_t + b                             RMSNorm gated by silu(g), linear
    h_t = step(v_t, h_{t-1})                    the cell, any file of paperlab/layers/cells or the user's own
    y_t = (norm(output(h_t)) * silu(g_t)) W_out

The whole trajectory of states is one system of equations, solved by a fixed small number of Newton iterations, each one linear
recurrence (paperlab.recurrence.newton_solve). `mode` says how the same parameters are run; decoding is the step itself.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.activations import ACTIVATIONS
from paperlab.layers.block_diagonal import BlockDiagonal
from paperlab.layers.cell_modes import IMPLEMENTATIONS, MODES, REDUCTIONS, Applied, How, run_cell, why_not
from paperlab.layers.convolution import ShortConvolution
from paperlab.layers.linear import linear
from paperlab.layers.norms import RMSNorm, at_least_float32
from paperlab.layers.recurrent_cell import STYLES, Recipe, recipe, verify
from paperlab.layers.segments import UNKNOWN, keep_if_continued, next_segment, runs
from paperlab.limits import above, at_least, hold, one_of
from paperlab.recurrence import Solver
from paperlab.recurrence.newton_cell import METHODS

SHARDING = (
    (r"mixer/(into|gate_in)/kernel$", ("fsdp", "tensor")),
    (r"mixer/conv/kernel$", (None, "tensor")),
    (r"mixer/input/kernel$", ("tensor", "fsdp", None, None)),
    (r"mixer/input/bias$", (None, "tensor")),
    (r"mixer/cell/[ap]$", (None, "tensor")),
    (r"mixer/out/kernel$", ("tensor", "fsdp")),
)

LIMITS = {
    "nonlinearity": one_of(*ACTIVATIONS),
    "output_nonlinearity": one_of(*ACTIVATIONS),
    "expand": above(0),
    "state_width": at_least(0, "0: expand times the width"),
    "mode": one_of(*MODES),
    "method": one_of(*METHODS),
    "iterations": at_least(0, "0, with a tolerance: as many as there are steps"),
    "tolerance": at_least(0, "0: a fixed count of iterations"),
    "relative": at_least(0, "0: the tolerance is absolute"),
    "damping": above(0),
    "trust": above(0),
    "window": at_least(0, "0: the whole sequence at once"),
    "reduction": one_of(*REDUCTIONS),
    "chunk": at_least(1),
    "impl": one_of(*IMPLEMENTATIONS),
    "init_style": one_of(*STYLES),
    "conv_width": at_least(1),
    "norm_eps": above(0),
    "init_std": at_least(0),
}
State = dict[str, Array]


class Mixer(nn.Module):
    """Options:
    cell: a file of paperlab/layers/cells ("gru", "lstm", "linear", "elman", "heads"), or the path of your own ending in ".py". A
      run knows the path and not what was in the file: give a changed cell another name.
    nonlinearity, output_nonlinearity: of cells that take them (ParaGRU's and ParaLSTM's candidate; ParaLSTM's output).
    expand, state_width: channels of the state, as a multiple of the width or (not 0) as a number.
    mode: "auto" (the fastest for this device), "sequential", "parallel", "parallel_kernel", "parallel_fused": layers/cell_modes.py.
    method ("newton", "quasi", "picard", "elk", "quasi_elk"), iterations, damping, trust, window: as in paperlab.recurrence.Solver.
    tolerance, relative: not 0: iterate until the residual is that small, at most `iterations` times; rows that miss it are NaN.
    reduction ("associative", "chunked"), chunk: of mode "parallel"; impl ("auto", "pallas", "interpret"): of the kernel modes.
    init_style: "library" or "paper", of the cell, see layers/recurrent_cell.py; init_std: of the projections.
    short_conv, conv_width: causal convolution before the cell. gate: the output is multiplied by silu of a projection of the input.
    bare: the cell and its input map alone: no other projection, convolution, norm or gate.
    verify: compare the declared structure of the cell with derivatives, before anything runs, and at the values of every call
      outside jit. A user's own file is always verified before anything runs.

    Intermediates: "core_out" (what the cell puts out), "residual" and "iterations" of every row.
    """

    width: int
    heads: int
    dtype: DTypeLike = jnp.float32
    cell: str = "gru"
    nonlinearity: str = "tanh"
    output_nonlinearity: str = "tanh"
    expand: float = 1.0
    state_width: int = 0
    mode: str = "auto"
    method: str = "newton"
    iterations: int = 3
    tolerance: float = 0.0
    relative: float = 0.0
    damping: float = 1.0
    trust: float = 1.0
    window: int = 0
    reduction: str = "associative"
    chunk: int = 64
    impl: str = "auto"
    init_style: str = "library"
    init_std: float = 0.02
    short_conv: bool = True
    conv_width: int = 4
    gate: bool = True
    norm_eps: float = 1e-5
    bare: bool = False
    verify: bool = False

    def setup(self) -> None:
        self.check()
        d, made = self.channels(), self.recipe()
        if not self.bare:
            self.into = linear(d, dtype=self.dtype, std=self.init_std)
            if self.short_conv:
                self.conv = ShortConvolution(d, self.conv_width, dtype=self.dtype)
            if self.gate:
                self.gate_in = linear(d, dtype=self.dtype, std=self.init_std)
            self.norm = RMSNorm(self.norm_eps)
            self.out = linear(self.width, dtype=self.dtype, std=self.init_std)
        fan_in = (self.width if self.bare else d) // self.heads
        kernel, bias = _uniform(made.bound(fan_in, self.heads)), lambda *_: made.bias()
        self.input = BlockDiagonal(d, made.inputs, self.heads, kernel, bias, self.dtype)
        has_parameters = jax.tree.leaves(jax.eval_shape(made.init, jax.random.key(0)))
        self.recurrent = self.param("cell", made.init) if has_parameters else {}

    @nn.nowrap
    def channels(self) -> int:
        """Channels of the state, of each of its variables."""
        return self.state_width or round(self.expand * self.width)

    @nn.nowrap
    def out_width(self) -> int:
        """Channels of what the layer puts out."""
        return self.channels() if self.bare else self.width

    @nn.nowrap
    def recipe(self) -> Recipe:
        """The cell at this width."""
        functions = {"nonlinearity": self.nonlinearity, "output_nonlinearity": self.output_nonlinearity}
        return recipe(self.cell, self.channels(), self.heads, style=self.init_style, **functions)

    @nn.nowrap
    def how(self) -> How:
        """Mode and solver."""
        solver = Solver(
            self.method,
            iterations=self.iterations or None,
            tolerance=self.tolerance or None,
            relative=self.relative or None,
            damping=self.damping,
            trust=self.trust,
            window=self.window or None,
        )
        return How(self.mode, solver, self.reduction, self.chunk, self.impl, self.verify)

    @nn.nowrap
    def check(self) -> None:
        """Raises ConfigError for options out of range, or that do not go together, and for a cell that is not what it says."""
        hold({name: getattr(self, name) for name in LIMITS}, LIMITS, "config.mixers.pararnn.")
        if not self.iterations and not self.tolerance and not self.relative:
            raise ConfigError(
                "config.mixers.pararnn.iterations=0: say how many (3), or a tolerance to iterate to (1e-5)"
            )
        d = self.channels()
        if d < 1:
            raise ConfigError(f"config.mixers.pararnn.expand={self.expand}: leaves no channel of width={self.width}")
        for name, channels in (("width", self.width), ("expand or state_width", d)):
            if channels % self.heads and (self.bare or name != "width"):
                raise ConfigError(
                    f"config.model.heads={self.heads}: the input map is block-diagonal over heads, and {channels} channels"
                    f" ({name}) are no multiple of {self.heads}"
                )
        made = self.recipe()
        refusal = why_not(made, self.how())
        if refusal:
            raise ConfigError(f"config.mixers.pararnn.{refusal}")
        if made.own or self.verify:
            verify(self.cell, made)

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
        fed, tails = self._fed(x_BxTxD, before, state, segment_ids)
        initial = None if before is None else before["h"]
        try:
            found = run_cell(self.recipe(), self.recurrent, fed, initial, segment_ids, self.how())
        except ValueError as error:  # no kernel for this device; a cell that is not what it says
            raise ConfigError(f"config.mixers.pararnn.cell={self.cell!r}: {error}") from error
        self._sow(found)
        y = self._output(found.outputs, x_BxTxD)
        if state is None:
            return y, None
        return y, {"h": found.last, "segment": next_segment(segment_ids, state["segment"]), **tails}

    def step(self, x_BxD: Array, state: State, position: Array | None = None) -> tuple[Array, State]:
        del position
        x, cell = x_BxD[:, None], self.recipe().cell
        fed, tails = self._fed(x, state, state, None)
        h = cell.step(self.recurrent, at_least_float32(fed[:, 0]), state["h"])
        y = self._output(cell.output(h)[:, None].astype(fed.dtype), x)  # type: ignore[misc]
        return y[:, 0], {"h": h, "segment": state["segment"], **tails}

    @nn.nowrap
    def zero_state(self, batch: int, max_len: int = 0, dtype: DTypeLike | None = None) -> State:
        """The cell's state, the id of the last document and the convolution's tail; its size does not depend on `max_len`."""
        del max_len, dtype  # always float32
        state = {"h": self.recipe().zero_state(batch), "segment": jnp.full((batch,), UNKNOWN, jnp.int32)}
        if self.short_conv and not self.bare:
            state["conv"] = jnp.zeros((batch, self.conv_width - 1, self.channels()), jnp.float32)
        return state

    def _fed(
        self, x: Array, before: State | None, state: State | None, segment_ids: Array | None
    ) -> tuple[Array, State]:
        """What the step reads, [B, T, inputs, channels], and the new tail of the convolution."""
        if self.bare:
            return self.input(x), {}
        u, tails = self.into(x), {}
        if self.short_conv:
            tail = self.zero_state(x.shape[0])["conv"] if before is None else before["conv"]
            carried = None if state is None else state["segment"]
            documents = None if segment_ids is None else runs(segment_ids, carried)
            u, tails["conv"] = self.conv(u, tail, documents)
        return self.input(u), tails

    def _output(self, outputs: Array, x: Array) -> Array:
        """What the cell puts out [B, T, channels] and x [B, T, width] -> [B, T, out_width]."""
        if self.bare:
            return outputs
        y = self.norm(outputs)
        return self.out(y * jax.nn.silu(self.gate_in(x)) if self.gate else y)

    def _sow(self, found: Applied) -> None:
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            self.sow("intermediates", "core_out", found.outputs)
            self.sow("intermediates", "residual", found.residual)
            self.sow("intermediates", "iterations", found.iterations)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init

"""pLSTM on a grid, the layer: [B, X, Y, D] -> [B, X, Y, D], grids of any size (arXiv 2506.11997, section 4.3, appendix B).

    q, k, v = linear x    (block-diagonal, if wished)          source, mark, direct = sigmoid(b + W x)      T = tanh(5 (b + W x))
    P-mode  alpha = sigmoid(b + W x / (2 D)),   s_r = alpha s,   T_rl = T_ru = alpha T,
            s_d = (1 - alpha) s,   T_dl = T_du = (1 - alpha) T
    D-mode  s_r, s_d, T_rl, T_du, m_l, m_u apart, and one turn: T_ru (chirality L: no T_dl) or T_dl (chirality R: no T_ru)
    y = norm(sum over four directions) W_o                     norm over each head

pmode "reference" is what the authors' code computes and its published weights need: s_r = alpha s, s_d = 1 - s_r, T_rl = T_ru =
alpha T, T_dl = T_du = 1 - T_rl. It sums to one for every T, so it never decays, and for T < 0 exceeds one in absolute sum.
With `fused` off every direction is normed by itself, and the four are averaged.
"""

from functools import partial
from math import gcd

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.gates import BlockLinear, DirectGate, Gate, MarkGate, SourceGate
from paperlab.layers.grid_convolution import GridConvolution
from paperlab.layers.norms import RMSNorm
from paperlab.layers.orthogonal import ORTHOGONAL
from paperlab.layers.residual import LayerScale
from paperlab.layers.transition import EIGENVALUES, Transition
from paperlab.limits import above, at_least, hold, one_of
from paperlab.papers.plstm.directions import CHOICES, PADDINGS, SUMMED, each_gate, read_grid, reads_itself, walk
from paperlab.recurrence.grid import Edges, Gates

MODES = ("P", "D")
PARTS = "STMDQKVO"  # source, transition, mark, direct, query, key, value, orientation
GATES = "STMDO"

LIMITS = {
    "chirality": one_of("L", "R"),
    "pmode": one_of("paper", "reference"),
    "gate_init": one_of("zeros", "normal"),
    "gate_blocks": at_least(1, "of every map of gates; it divides 4 heads"),
    "qkv_blocks": at_least(1, "of the maps to q, k and v"),
    "JT": at_least(1),
    "JK": at_least(1),
    "JV": at_least(1),
    "JQ": at_least(1),
    "JO": at_least(1),
    "eigenvalues": one_of(*EIGENVALUES),
    "eigenvalue_factor": above(0),
    "orthogonal": one_of(*ORTHOGONAL),
    "conv_width": at_least(0, "0: no convolution"),
    "grid_impl": one_of(*CHOICES),
    "chunk": at_least(1),
    "padding": one_of(*PADDINGS),
}
OPTIONS = {
    "chirality": "L",
    "pmode": "paper",
    "fused": True,
    "directions": "0123",
    "gate_inputs": GATES,
    "gate_init": "zeros",
    "gate_blocks": 1,
    "qkv_blocks": 1,
    "JT": 1,
    "JK": 1,
    "JV": 1,
    "JQ": 1,
    "JO": 1,
    "eigenvalues": "tanh",
    "eigenvalue_factor": 5.0,
    "orthogonal": "exponential",
    "symmetric": False,
    "conv_width": 0,
    "conv_inputs": "STMDQKO",
    "passthrough": False,
    "grid_impl": "auto",
    "chunk": 8,
    "padding": "needed",
}


class Layer2D(nn.Module):
    """Options:
    mode: "P" (directed) or "D" (diffusion); chirality of D-mode; pmode: "paper" or "reference".
    fused; directions: which of the four, as digits, 0 the grid as it is, 1 x reversed, 2 y reversed, 3 both.
    gate_inputs: letters of the gates that read the input (S source, T transition, M mark, D direct, O orientation), the others
        are biases alone; gate_init: "zeros" or "normal", how their weights start; gate_blocks, qkv_blocks: blocks of the maps.
    JT, JK, JV, JQ, JO: state-tracking sizes; eigenvalues, eigenvalue_factor, orthogonal, symmetric: of `Transition`.
    conv_width: of a causal depthwise convolution (0: none) that feeds the parts in `conv_inputs`; passthrough: y + scale x.
    grid_impl, chunk, padding: of `read_grid`.  project: the out-projection; without it y has heads * DV * JO channels.
    """

    width: int
    heads: int
    mode: str = "P"
    chirality: str = "L"
    pmode: str = "paper"
    fused: bool = True
    directions: str = "0123"
    gate_inputs: str = GATES
    gate_init: str = "zeros"
    gate_blocks: int = 1
    qkv_blocks: int = 1
    JT: int = 1
    JK: int = 1
    JV: int = 1
    JQ: int = 1
    JO: int = 1
    eigenvalues: str = "tanh"
    eigenvalue_factor: float = 5.0
    orthogonal: str = "exponential"
    symmetric: bool = False
    conv_width: int = 0
    conv_inputs: str = "STMDQKO"
    passthrough: bool = False
    grid_impl: str = "auto"
    chunk: int = 8
    padding: str = "needed"
    project: bool = True
    norm_eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.check()
        H, O = self.heads, len(self.directions)
        JT, JK, JV, JQ, JO = self.JT, self.JK, self.JV, self.JQ, self.JO
        DK, DV = self.head_sizes()
        linear = partial(BlockLinear, blocks=self.qkv_blocks, use_bias=True, dtype=self.dtype)
        self.q, self.k, self.v = linear(H * DK * JQ), linear(H * DK * JK), linear(H * DV * JV)
        shapes = {"source": (H, O, JT, JK, JV), "mark": (H, O, JO, JQ, JT)}
        if self.mode == "P":
            self.source, self.mark = (self._gate(n, shapes[n]) for n in ("source", "mark"))
            self.transition = self._transition()
            self.orientation = Gate(
                (H, O), bias=_fan, weights="zeros" if "O" in self.gate_inputs else "none", name="orientation"
            )
        else:
            self.source_r, self.source_d = (self._gate("source", shapes["source"]) for _ in range(2))
            self.mark_l, self.mark_u = (self._gate("mark", shapes["mark"]) for _ in range(2))
            self.transition_r, self.transition_d, self.transition_turn = (self._transition() for _ in range(3))
        self.direct = self._gate("direct", (H, JO, JQ, JK, JV))
        self.head_norm = RMSNorm(self.norm_eps, shape=(H, DV * JO))
        if self.conv_width:
            self.convolution = GridConvolution(self.conv_width, self.dtype)
        if self.project:
            self.out = BlockLinear(self.width, dtype=self.dtype)
        if self.passthrough:
            self.through = LayerScale(1.0)

    @nn.nowrap
    def head_sizes(self) -> tuple[int, int]:
        """(DK, DV): key and value channels of a head."""
        return self.width // self.heads // self.JK, self.width // self.heads // self.JV

    @nn.nowrap
    def check(self, where: str = "config.model.") -> None:
        """Raises ConfigError for options out of range, or that do not go together."""
        hold({name: getattr(self, name) for name in LIMITS}, LIMITS, where)
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r}: choose one of {', '.join(MODES)}")
        _letters(where, "gate_inputs", self.gate_inputs, GATES)
        _letters(where, "conv_inputs", self.conv_inputs, PARTS)
        _letters(where, "directions", self.directions, "0123", least=1)
        if self.width % self.heads:
            raise ConfigError(f"{where}heads={self.heads} must divide {where}width={self.width}: change one of them")
        of_head = self.width // self.heads
        for name in ("JK", "JV"):
            if of_head % getattr(self, name):
                raise ConfigError(f"{where}{name}={getattr(self, name)} must divide the {of_head} channels of a head")
        if self.grid_impl == SUMMED and not self.fused:
            raise ConfigError(
                f"{where}grid_impl='summed': directions that stay apart have no sum; set {where}fused=True"
            )
        for name, outputs in (("gate_blocks", len(self.directions) * self.heads), ("qkv_blocks", self.heads)):
            blocks = getattr(self, name)
            if outputs % blocks or self.width % blocks:
                raise ConfigError(f"{where}{name}={blocks}: must divide {outputs} and {where}width={self.width}")

    def __call__(self, x_BxXxYxD: Array) -> Array:
        q, k, v, gates, direct = self.read(x_BxXxYxD)
        try:
            out = read_grid(
                q,
                k,
                v,
                gates,
                direct,
                directions=self.turns(),
                fused=self.fused,
                impl=self.grid_impl,
                chunk=self.chunk,
                padding=self.padding,
            )
        except ValueError as error:  # no kernel for this device or these sizes
            raise ConfigError(f"config.model.grid_{str(error).removeprefix('plstm_grid: ')}") from error
        return self._finish(out, x_BxXxYxD)

    def tile(self, x_BxXxYxD: Array, entering: Edges | None = None) -> tuple[Array, Edges]:
        """One tile of a larger grid: y, and the states on the borders through which each direction leaves.

        Args:
          entering: states [B, H, directions, Y or X, DK, DV, JT] at the borders where each direction starts; zeros if omitted.

        Raises:
          ConfigError: with a convolution, whose inputs lie in other tiles.
        """
        if self.conv_width:
            raise ConfigError("config.model.conv_width: a tile does not know the inputs of its neighbours; set it to 0")
        q, k, v, gates, direct = self.read(x_BxXxYxD)
        impl = "auto" if self.grid_impl == SUMMED else self.grid_impl
        out, leaving = walk(q, k, v, gates, entering, directions=self.turns(), impl=impl, chunk=self.chunk)
        own = reads_itself(q, k, v, direct).astype(out.dtype)
        return self._finish(out.sum(2) + own if self.fused else out + own[:, :, None], x_BxXxYxD), leaving

    def read(self, x: Array) -> tuple[Array, Array, Array, Gates, Array]:
        """(q, k, v, gates, direct) of every node, as `read_grid` takes them."""
        c = self.convolution(x) if self.conv_width else x
        parts = {part: c if self.conv_width and part in self.conv_inputs else x for part in PARTS}
        DK, DV = self.head_sizes()

        def heads(y: Array, D: int, J: int) -> Array:
            return jnp.moveaxis(y.reshape(*y.shape[:3], self.heads, D, J), 3, 1)

        q, k = heads(self.q(parts["Q"]), DK, self.JQ), heads(self.k(parts["K"]), DK, self.JK)
        v = heads(self.v(parts["V"]), DV, self.JV)
        gates = self._p_gates(parts) if self.mode == "P" else self._d_gates(parts)
        gates = each_gate(lambda g, _: _grid_last(g, x.shape, 2), gates)
        return q, k, v, gates, _grid_last(self._of("D", self.direct, parts), x.shape, 1)

    @nn.nowrap
    def turns(self) -> tuple[int, ...]:
        """The directions as numbers."""
        return tuple(int(d) for d in self.directions)

    def _p_gates(self, parts: dict[str, Array]) -> Gates:
        """Directed propagation, [B, X, Y, H, directions, ...]."""
        scaled = {**parts, "O": parts["O"] * (0.5 / self.width)}
        alpha = self._of("O", self.orientation, scaled)
        source, T, mark = (
            self._of(part, gate, parts) for part, gate in (("S", self.source), ("T", self.transition), ("M", self.mark))
        )
        a, a_source = alpha[..., None, None], alpha[..., None, None, None]
        s_r, rl = a_source * source, a * T
        s_d, dl = (1 - s_r, 1 - rl) if self.pmode == "reference" else ((1 - a_source) * source, (1 - a) * T)
        return Gates(s_r, s_d, rl, rl, dl, dl, mark, mark)

    def _d_gates(self, parts: dict[str, Array]) -> Gates:
        """Diffusive distribution: one of the two turns is missing, so that there is one path between any two nodes."""
        s_r, s_d = (self._of("S", gate, parts) for gate in (self.source_r, self.source_d))
        m_l, m_u = (self._of("M", gate, parts) for gate in (self.mark_l, self.mark_u))
        rl, du, turn = (
            self._of("T", gate, parts) for gate in (self.transition_r, self.transition_d, self.transition_turn)
        )
        ru, dl = (turn, None) if self.chirality == "L" else (None, turn)
        return Gates(s_r, s_d, rl, ru, dl, du, m_l, m_u)

    def _of(self, letter: str, gate: nn.Module, parts: dict[str, Array]) -> Array:
        """A gate at every node, [B, X, Y, H, ...]; once for all rows and nodes, where it does not read the input."""
        x = parts[letter]
        g = gate(x if letter in self.gate_inputs else x[:1, :1, :1])
        return g.reshape(*g.shape[:3], self.heads, -1, self.JT, self.JT) if letter == "T" else g

    def _finish(self, out: Array, x: Array) -> Array:
        """[B, H, (directions,) X, Y, DV, JO] -> [B, X, Y, D]: norm of each head, mean over directions, projection."""
        y = jnp.moveaxis(out.reshape(*out.shape[:-2], -1), 1, -2)
        y = self.head_norm(y)
        if not self.fused:
            y = y.mean(1)
        y = y.reshape(*y.shape[:3], -1)
        y = self.out(y) if self.project else y
        return y + self.through(x) if self.passthrough else y

    @nn.nowrap
    def _gate(self, kind: str, shape: tuple[int, ...]) -> Gate:
        make = {"source": SourceGate, "mark": MarkGate, "direct": DirectGate}[kind]
        blocks = gcd(self.gate_blocks, self.heads) if kind == "direct" else self.gate_blocks
        return make(shape, weights=self._weights(kind[0].upper()), blocks=blocks)

    @nn.nowrap
    def _transition(self) -> Transition:
        options = {name: getattr(self, name) for name in ("JT", "eigenvalues", "orthogonal", "symmetric")}
        options |= {"factor": self.eigenvalue_factor, "blocks": self.gate_blocks}
        return Transition(self.heads * len(self.directions), weights=self._weights("T"), **options)

    @nn.nowrap
    def _weights(self, letter: str) -> str:
        return self.gate_init if letter in self.gate_inputs else "none"


def _fan(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Orientations spread over the heads: linspace(-2, 2), the same in every direction."""
    del key
    return jnp.broadcast_to(jnp.linspace(-2.0, 2.0, shape[0], dtype=dtype)[:, None], shape)


def _grid_last(gate: Array, shape: tuple[int, ...], lead: int) -> Array:
    """[B, X, Y, lead axes, J ...] -> [B, lead axes, X, Y, J ...], one node repeated over the grid where there is but one."""
    X, Y = shape[1:3]
    gate = jnp.broadcast_to(gate, (gate.shape[0], X, Y, *gate.shape[3:]))
    return jnp.moveaxis(gate, (1, 2), (1 + lead, 2 + lead))


def _letters(where: str, name: str, value: str, known: str, least: int = 0) -> None:
    if set(value) - set(known) or len(set(value)) != len(value) or len(value) < least:
        raise ConfigError(f"{where}{name}={value!r}: write each of {known!r} at most once, and nothing else")

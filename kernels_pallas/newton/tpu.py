"""The solver as one TPU kernel.

Grid (batch, channel tile, time tile), time tiles in order with the last state carried in VMEM. Inside a tile the iterate lives in
the output block; every Newton step walks it once in blocks of `rows` positions (channels across lanes): Jacobian and residual of
the block, affine maps composed within groups of 8 rows by three roll-and-add steps, groups joined one after another.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax import numpy as jnp

from kernels_pallas.compat import pallas_tpu, pl
from kernels_pallas.newton.core import Cell, Rows, State, applied, composed, furthest, minus, plus

LANES = 128
GROUP = 8


class Config(NamedTuple):
    """Positions of a time tile, positions walked at once inside it, channels of a tile."""

    time: int = 256
    rows: int = 32
    channels: int = 128


class _Tile(NamedTuple):
    """One kernel instance's memory and sizes."""

    gates: tuple[Any, ...]
    w: State
    states: tuple[Any, ...]
    rows: int
    blocks: int

    def at(self, m: Any) -> Any:
        return pl.ds(pl.multiple_of(m * self.rows, self.rows), self.rows)

    def inputs(self, m: Any) -> State:
        return tuple(ref[0, self.at(m), :].astype(jnp.float32) for ref in self.gates)

    def load(self, m: Any) -> State:
        return tuple(ref[0, self.at(m), :] for ref in self.states)

    def store(self, m: Any, values: State) -> None:
        for ref, value in zip(self.states, values, strict=True):
            ref[0, self.at(m), :] = value


def solve(
    cell: Cell, x: Array, w: State, start: State, iterations: int, config: Config, interpret: Any = False
) -> tuple[State, Array]:
    """(states [B,T,D] each, residual [B]), all float32; x [B,T,3,D], w [D] each, start [B,D] each.

    Channels are filled up to a multiple of 128, which copies x where they are none.
    """
    B, T, _, D = x.shape
    step = 16 if x.dtype.itemsize < 4 else GROUP
    rows = min(config.rows, -(-T // step) * step)
    time = min(config.time // rows * rows, -(-T // rows) * rows)
    padded_T, padded_D = max(T, time), -(-D // LANES) * LANES
    x = jnp.pad(x, ((0, 0), (0, padded_T - T), (0, 0), (0, padded_D - D))).reshape(B, padded_T, 3 * padded_D)
    weights, first = (jnp.pad(jnp.stack(v, -2), ((0, 0),) * n + ((0, padded_D - D),)) for v, n in ((w, 1), (start, 2)))
    channels = next(c for c in range(config.channels, 0, -LANES) if padded_D % c == 0)
    tiles = padded_D // channels

    def gate(number: int) -> Any:
        return pl.BlockSpec((1, time, channels), lambda b, d, t: (b, t, number * tiles + d))

    sequence = pl.BlockSpec((1, time, channels), lambda b, d, t: (b, t, d))
    *states, worst = pl.pallas_call(
        partial(_body, cell, iterations, rows, T),
        grid=(B, tiles, pl.cdiv(padded_T, time)),
        in_specs=[
            *(gate(number) for number in range(3)),
            pl.BlockSpec((cell.weights, channels), lambda b, d, t: (0, d)),
            pl.BlockSpec((1, cell.states, channels), lambda b, d, t: (b, 0, d)),
        ],
        out_specs=[*(sequence for _ in start), pl.BlockSpec((1, 1, channels), lambda b, d, t: (b, 0, d))],
        out_shape=[
            *(jax.ShapeDtypeStruct((B, padded_T, padded_D), jnp.float32) for _ in start),
            jax.ShapeDtypeStruct((B, 1, padded_D), jnp.float32),
        ],
        scratch_shapes=[pallas_tpu.VMEM((cell.states, 1, channels), jnp.float32)],
        compiler_params=pallas_tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name=f"newton_{cell.name}",
    )(x, x, x, weights, first)
    return tuple(h[:, :T, :D] for h in states), worst[:, 0, :D].max(-1)


def _body(cell: Cell, iterations: int, rows: int, T: int, *refs: Any) -> None:
    *gates, weights, first, carry = *refs[:5], refs[-1]
    states, worst = refs[5 : 5 + cell.states], refs[5 + cell.states]
    time = states[0].shape[1]
    w = tuple(weights[i : i + 1, :] for i in range(cell.weights))
    tile = _Tile(tuple(gates), w, tuple(states), rows, time // rows)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for k in range(cell.states):
            carry[k] = first[0, k : k + 1, :]
        worst[0] = jnp.zeros_like(worst[0])

    start = tuple(carry[k] for k in range(cell.states))
    _guess(cell, tile)
    lax.fori_loop(0, iterations, lambda _, last: _iteration(cell, tile, last), start)
    left = T - pl.program_id(2) * time
    worst[0] = jnp.maximum(worst[0], _residual(cell, tile, start, left))
    for k in range(cell.states):
        carry[k] = states[k][0, time - 1 : time, :]


def _guess(cell: Cell, tile: _Tile) -> None:
    def block(m: Any, _: None) -> None:
        x = tile.inputs(m)
        tile.store(m, cell.step(x, tile.w, (jnp.zeros_like(x[0]),) * cell.states))

    lax.fori_loop(0, tile.blocks, block, None)


def _iteration(cell: Cell, tile: _Tile, start: State) -> State:
    """One Newton step on the whole tile; returns `start` so that it can be a loop's body."""

    def block(m: Any, carried: tuple[State, State]) -> tuple[State, State]:
        last, delta = carried
        states = tile.load(m)
        after, J = cell.linearized(tile.inputs(m), tile.w, _before(last, states))
        change, delta = _reduced(J, minus(after, states), delta)
        tile.store(m, plus(states, change))
        return tuple(h[-1:] for h in states), delta

    lax.fori_loop(0, tile.blocks, block, (start, tuple(jnp.zeros_like(s) for s in start)))
    return start


def _residual(cell: Cell, tile: _Tile, start: State, left: Any) -> Array:
    """max |f(h_{t-1}) - h_t| of each channel over the first `left` positions, [1, channels]."""

    def block(m: Any, carried: tuple[State, Array]) -> tuple[State, Array]:
        last, worst = carried
        states = tile.load(m)
        off = furthest(cell.step(tile.inputs(m), tile.w, _before(last, states)), states)
        off = jnp.where(_row(off) + m * tile.rows < left, off, 0.0)
        return tuple(h[-1:] for h in states), jnp.maximum(worst, jnp.max(off, axis=0, keepdims=True))

    return lax.fori_loop(0, tile.blocks, block, (start, jnp.zeros_like(start[0])))[1]


def _before(last: State, states: State) -> State:
    """Every row's predecessor; the first row's is `last` [1, channels]."""
    return tuple(jnp.where(_row(h) == 0, s, pallas_tpu.roll(h, 1, axis=0)) for s, h in zip(last, states, strict=True))


def _reduced(J: Rows, r: State, delta: State) -> tuple[State, State]:
    """(delta_t of every row, that of the last row [1, channels]) from that before the first row."""
    inside = _row(r[0]) % GROUP
    for shift in (1, 2, 4):
        A, b = jax.tree.map(partial(pallas_tpu.roll, shift=shift, axis=0), (J, r))
        absorbs = inside >= shift
        J, r = jax.tree.map(partial(jnp.where, absorbs), (composed(J, A), plus(applied(J, b), r)), (J, r))
    found = []
    for first in range(0, r[0].shape[0], GROUP):
        A, b = jax.tree.map(lambda v, first=first: v[first : first + GROUP], (J, r))
        found.append(plus(applied(A, delta), b))
        delta = tuple(d[-1:] for d in found[-1])
    return tuple(jnp.concatenate(parts, axis=0) for parts in zip(*found, strict=True)), delta


def _row(like: Array) -> Array:
    return lax.broadcasted_iota(jnp.int32, like.shape, 0)

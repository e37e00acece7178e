"""What one warpgroup does in a tile of the Hopper kernel.

A Newton step: each lane eliminates its positions one after another from "no change before the lane" and leaves h + b and A of the
affine map delta -> h + b + A delta; the lanes' last maps are composed by recursive doubling through shared memory; the change
that comes in, delta, is applied by the next walk over the positions. Vectors are [side, channels]: lanes side by side.
"""

from functools import partial
from typing import Any, NamedTuple

from jax import Array, lax
from jax import numpy as jnp

from kernels_pallas.compat import mosaic_gpu, pl
from kernels_pallas.newton.core import Cell, Rows, State, applied, composed, furthest, minus, plus

WARPGROUP = 128


class Config(NamedTuple):
    """Warpgroups of a block (a power of two), positions of a lane, channels of a tile (32, 64, 128 or 256)."""

    warpgroups: int = 8
    rows: int = 4
    channels: int = 128

    @property
    def side(self) -> int:
        """Lanes of a warpgroup."""
        return max(1, WARPGROUP // self.channels)

    @property
    def lanes(self) -> int:
        """Lanes of a block."""
        return self.warpgroups * self.side

    @property
    def before(self) -> int:
        """Identity maps in front of the first lane's, as many as the longest reach of the doubling, in whole warpgroups."""
        return self.side * max(1, self.warpgroups // 2)


class Shared(NamedTuple):
    """Shared memory of a block; S positions of L lanes with R lanes side by side."""

    gates: Any  # [2, 3 S, L, channels], tiles by turns
    weights: Any  # [weights, R, channels]
    states: tuple[Any, ...]  # [S, L, channels] each: h + b, at the end h
    maps: tuple[Any, ...]  # [S, L, channels] each, K*K of them: A
    starts: Any  # [K, R + L, channels]: row R + l is lane l's last state; row R - 1 the state before the tile
    sent: Any  # [2, K*K + K, before + L, channels]: A and b of the lanes, exchanges by turns
    worst: Any  # [L, channels]


class Walk(NamedTuple):
    """One warpgroup's part."""

    cell: Cell
    config: Config
    refs: Shared
    everyone: Any
    warpgroup: Any
    w: State

    def full(self, value: float) -> Array:
        """One value everywhere."""
        shape = (self.config.side, self.config.channels)
        layout = mosaic_gpu.Layout.WG_STRIDED(shape, max(1, self.config.channels // WARPGROUP))
        return mosaic_gpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    def zeros(self) -> State:
        return (self.full(0.0),) * self.cell.states

    def one(self) -> Rows:
        K = self.cell.states
        return tuple(tuple(self.full(float(k == j)) for j in range(K)) for k in range(K))

    def own(self, offset: Any = 0) -> Any:
        """This warpgroup's lanes, `offset` further."""
        return pl.ds(self.warpgroup * self.config.side + offset, self.config.side)

    def meet(self) -> None:
        """Waits until every warpgroup is here; what they wrote before is seen after."""
        mosaic_gpu.barrier_arrive(self.everyone)
        mosaic_gpu.barrier_wait(self.everyone)

    def prepare(self) -> None:
        """Identity maps in front of the first lane."""

        @pl.when(self.warpgroup < self.config.before // self.config.side)
        def _() -> None:
            for slot in range(2):
                self.send(slot, self.one(), self.zeros(), 0)

    def gates(self, slot: Any, s: Any) -> State:
        return tuple(self.refs.gates[slot, s * 3 + g, self.own()].astype(jnp.float32) for g in range(3))

    def solve(self, slot: Any, iterations: int, left: Any, off: Array) -> tuple[State, Array]:
        """(last states of the lanes, max residual so far) after leaving the tile's states in shared memory."""
        R, K = self.config.side, self.cell.states
        for k, value in enumerate(self.guess(slot)):
            self.refs.starts[k, self.own(R)] = value
        self.meet()
        start = tuple(self.refs.starts[k, self.own(R - 1)] for k in range(K))
        start, delta = lax.fori_loop(0, iterations, partial(self.iteration, slot), (start, self.zeros()))
        return self.finish(slot, left, start, delta, off)

    def carry(self, last: State) -> None:
        """Hands the tile's last state to the next tile's first lane."""

        @pl.when(self.warpgroup == self.config.warpgroups - 1)
        def _() -> None:
            for k, value in enumerate(last):
                self.refs.starts[k, pl.ds(0, self.config.side)] = value

    def guess(self, slot: Any) -> State:
        """f(0, x) at every position; returns the lanes' last."""

        def position(s: Any, _: State) -> State:
            states = self.cell.step(self.gates(slot, s), self.w, self.zeros())
            self.write(s, states, (self.zeros(),) * self.cell.states)
            return states

        return lax.fori_loop(0, self.config.rows, position, self.zeros())

    def iteration(self, slot: Any, i: Any, carried: tuple[State, State]) -> tuple[State, State]:
        start, delta = carried

        def position(s: Any, carried: tuple[State, Rows, State]) -> tuple[State, Rows, State]:
            before, A, b = carried
            states = self.read(s, delta)
            after, J = self.cell.linearized(self.gates(slot, s), self.w, before)
            A, b = composed(J, A), plus(applied(J, b), minus(after, states))
            self.write(s, plus(states, b), A)
            return states, A, b

        _, A, b = lax.fori_loop(0, self.config.rows, position, (start, self.one(), self.zeros()))
        delta = self.exchanged(i, A, b)
        return plus(start, delta), delta

    def exchanged(self, i: Any, A: Rows, b: State) -> State:
        """The change before each lane: the maps of all earlier lanes, one after another."""
        doublings = (self.config.lanes - 1).bit_length()
        turn = i * (doublings + 1)

        def double(j: Any, maps: tuple[Rows, State]) -> tuple[Rows, State]:
            slot = lax.rem(turn + j, 2)
            self.send(slot, *maps, self.config.before)
            self.meet()
            A, b = maps
            A_e, b_e = self.received(slot, lax.shift_left(jnp.int32(1), j))
            return composed(A, A_e), plus(applied(A, b_e), b)

        A, b = lax.fori_loop(0, doublings, double, (A, b))
        slot = lax.rem(turn + doublings, 2)
        self.send(slot, A, b, self.config.before)
        self.meet()
        return self.received(slot, 1)[1]

    def send(self, slot: Any, A: Rows, b: State, offset: int) -> None:
        for number, value in enumerate((*(a for row in A for a in row), *b)):
            self.refs.sent[slot, number, self.own(offset)] = value

    def received(self, slot: Any, back: Any) -> tuple[Rows, State]:
        """The maps of the lanes `back` before these."""
        K = self.cell.states
        earlier = self.own(self.config.before - back)
        sent = tuple(self.refs.sent[slot, number, earlier] for number in range(K * K + K))
        return tuple(sent[k * K : k * K + K] for k in range(K)), sent[K * K :]

    def finish(self, slot: Any, left: Any, start: State, delta: State, off: Array) -> tuple[State, Array]:
        """Applies the last change and measures the residual over the first `left` positions of the tile."""
        shape = (self.config.side, self.config.channels)
        layout = mosaic_gpu.Layout.WG_STRIDED(shape, max(1, self.config.channels // WARPGROUP))
        lane = mosaic_gpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)
        first = (lane + self.warpgroup * self.config.side) * self.config.rows

        def position(s: Any, carried: tuple[State, Array]) -> tuple[State, Array]:
            before, off = carried
            states = self.read(s, delta)
            after = self.cell.step(self.gates(slot, s), self.w, before)
            for ref, value in zip(self.refs.states, states, strict=True):
                ref[s, self.own()] = value
            return states, jnp.maximum(off, jnp.where(first + s < left, furthest(after, states), 0.0))

        return lax.fori_loop(0, self.config.rows, position, (start, off))

    def read(self, s: Any, delta: State) -> State:
        """The iterate: what the last walk left, with the change that came in."""
        K, own = self.cell.states, self.own()
        A = tuple(tuple(self.refs.maps[k * K + j][s, own] for j in range(K)) for k in range(K))
        return plus(tuple(ref[s, own] for ref in self.refs.states), applied(A, delta))

    def write(self, s: Any, states: State, A: Rows) -> None:
        values = (*states, *(a for row in A for a in row))
        for ref, value in zip((*self.refs.states, *self.refs.maps), values, strict=True):
            ref[s, self.own()] = value

"""The solver as one Hopper kernel.

One block of threads a (batch row, channel tile); it walks all of time in tiles of lanes * rows positions. Every thread owns its
channels, every warpgroup (a lane of time) `rows` neighbouring positions. Gate inputs of a tile come by TMA, the next tile's
meanwhile. A Newton step: each lane eliminates its positions one after another from "no change before the lane", writing
h + b and A of the affine map h + b + A delta; lanes exchange their last maps through shared memory; what change comes in,
delta, is applied by the next walk over the positions. No state passes between blocks.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax import numpy as jnp

from kernels_pallas.compat import mosaic_gpu, pl
from kernels_pallas.newton.core import Cell, Rows, State, applied, composed, furthest, minus, plus

SHARED_MEMORY = 232_448
TMA_BYTES = 16


class Config(NamedTuple):
    """Lanes of time (warpgroups), positions of each in a tile, channels of a tile."""

    lanes: int = 4
    rows: int = 8
    channels: int = 128


def shared_memory(cell: Cell, config: Config, itemsize: int) -> int:
    """Bytes of shared memory that a block takes, without a few for barriers."""
    lanes, rows, channels = config
    K, N = cell.states, lanes * rows
    floats = cell.weights + N * (K + K * K) + 2 * lanes * (K + K * K + K) + lanes
    return channels * (2 * N * 3 * itemsize + 4 * floats)


def candidates(cell: Cell, itemsize: int) -> list[Config]:
    """Configurations that fit into a block's shared memory and registers."""
    found = [Config(lanes, rows, 128) for lanes in (8, 4, 2) for rows in (4, 3, 2, 8, 16)]
    found += [Config(lanes, rows, 256) for lanes in (4, 2) for rows in (4, 2)]
    return [config for config in found if shared_memory(cell, config, itemsize) + 1024 <= SHARED_MEMORY]


def default(cell: Cell, itemsize: int) -> Config:
    """The first of the candidates: eight lanes, which fill a multiprocessor's warps."""
    return candidates(cell, itemsize)[0]


class _Refs(NamedTuple):
    """Shared memory of a block. N = lanes * rows."""

    gates: Any  # [2, N, 3, channels], tiles by turns
    weights: Any  # [weights, channels]
    states: tuple[Any, ...]  # [N, channels] each: h + b, at the end h
    maps: tuple[Any, ...]  # [N, channels] each, K*K of them: A
    starts: Any  # [2, lanes, K, channels]: the state before each lane, tiles by turns
    sent: Any  # [2, lanes, K*K + K, channels]: A and b of each lane's last position, Newton steps by turns
    worst: Any  # [lanes, channels]


def solve(
    cell: Cell, x: Array, w: State, start: State, iterations: int, config: Config, interpret: Any = None
) -> tuple[State, Array]:
    """(states [B,T,D] each, residual [B]), all float32; x [B,T,3,D], w [D] each, start [B,D] each."""
    B, T, _, D = x.shape
    lanes, rows, channels = config
    N, K = lanes * rows, cell.states
    x = jnp.pad(x, ((0, 0), (0, max(0, N - T)), (0, 0), (0, max(0, channels - D))))
    w, start = ([jnp.pad(v, (*[(0, 0)] * (v.ndim - 1), (0, x.shape[-1] - D))) for v in vs] for vs in (w, start))
    sequence = jax.ShapeDtypeStruct((B, *x.shape[1::2]), jnp.float32)
    shared = partial(mosaic_gpu.SMEM, dtype=jnp.float32)
    *states, worst = mosaic_gpu.kernel(
        partial(_body, cell, iterations, config, T),
        out_type=[*[sequence] * K, jax.ShapeDtypeStruct((B, lanes, x.shape[-1]), jnp.float32)],
        scratch_types=[
            _Refs(
                mosaic_gpu.SMEM((2, N, 3, channels), x.dtype),
                shared((cell.weights, channels)),
                tuple(shared((N, channels)) for _ in range(K)),
                tuple(shared((N, channels)) for _ in range(K * K)),
                shared((2, lanes, K, channels)),
                shared((2, lanes, K * K + K, channels)),
                shared((lanes, channels)),
            ),
            mosaic_gpu.Barrier(num_barriers=2),
            mosaic_gpu.Barrier(num_arrivals=2),
            mosaic_gpu.Barrier(num_arrivals=lanes),
        ],
        grid=(B, pl.cdiv(x.shape[-1], channels)),
        grid_names=("batch", "channels"),
        num_threads=lanes,
        thread_name="lane",
        interpret=interpret,
    )(x, jnp.stack(w), jnp.stack(start, 1))
    return tuple(h[:, :T, :D] for h in states), worst[..., :D].max((1, 2))


def _body(cell: Cell, iterations: int, config: Config, T: int, *refs: Any) -> None:
    (x, weights, first), states, worst = refs[:3], refs[3 : 3 + cell.states], refs[3 + cell.states]
    shared, loaded, placed, everyone = refs[4 + cell.states :]
    lane, row = lax.axis_index("lane"), lax.axis_index("batch")
    channels = pl.ds(lax.axis_index("channels") * config.channels, config.channels)
    N = config.lanes * config.rows
    tiles = pl.cdiv(T, N)

    def load(t: Any) -> None:
        slot = lax.rem(t, 2)
        source = x.at[row, pl.ds(t * N, N), :, channels]
        mosaic_gpu.copy_gmem_to_smem(source, shared.gates.at[slot], loaded.at[slot])

    @pl.when(lane == 0)
    def _() -> None:
        mosaic_gpu.copy_gmem_to_smem(weights.at[:, channels], shared.weights, placed)
        mosaic_gpu.copy_gmem_to_smem(first.at[row, :, channels], shared.starts.at[0, 0], placed)
        load(jnp.int32(0))

    mosaic_gpu.barrier_wait(placed)
    walk = _Walk(cell, config, shared, everyone, lane, tuple(shared.weights[i] for i in range(cell.weights)))

    def tile(t: Any, off: Array) -> Array:
        @pl.when((lane == 0) & (t + 1 < tiles))
        def _() -> None:
            load(t + 1)

        slot = lax.rem(t, 2)
        mosaic_gpu.barrier_wait(loaded.at[slot])
        mosaic_gpu.wait_smem_to_gmem(0, wait_read_only=True)
        last, off = walk.solve(slot, iterations, T - t * N, off)
        mosaic_gpu.commit_smem()
        own = pl.ds(lane * config.rows, config.rows)
        for source, target in zip(shared.states, states, strict=True):
            rows = pl.ds(t * N + lane * config.rows, config.rows)
            mosaic_gpu.copy_smem_to_gmem(source.at[own], target.at[row, rows, channels])

        @pl.when(lane == config.lanes - 1)
        def _() -> None:
            for k, value in enumerate(last):
                shared.starts[1 - slot, 0, k] = value

        walk.meet()
        return off

    shared.worst[lane] = lax.fori_loop(0, tiles, tile, walk.full(0.0))
    mosaic_gpu.commit_smem()
    mosaic_gpu.copy_smem_to_gmem(shared.worst.at[lane], worst.at[row, lane, channels])
    mosaic_gpu.wait_smem_to_gmem(0)


class _Walk(NamedTuple):
    """One lane's part in solving a tile."""

    cell: Cell
    config: Config
    refs: _Refs
    everyone: Any
    lane: Any
    w: State

    def full(self, value: float) -> Array:
        """One value in every channel."""
        C = self.config.channels
        return mosaic_gpu.layout_cast(jnp.full((C,), value, jnp.float32), mosaic_gpu.Layout.WG_STRIDED((C,), C // 128))

    def zeros(self) -> State:
        return (self.full(0.0),) * self.cell.states

    def meet(self) -> None:
        """Waits until every lane is here; what they wrote before is seen after."""
        mosaic_gpu.barrier_arrive(self.everyone)
        mosaic_gpu.barrier_wait(self.everyone)

    def gates(self, slot: Any, position: Any) -> State:
        return tuple(self.refs.gates[slot, position, g].astype(jnp.float32) for g in range(3))

    def solve(self, slot: Any, iterations: int, left: Any, off: Array) -> tuple[State, Array]:
        """(last state, max residual so far) after leaving the tile's states in shared memory."""
        first, K = self.lane * self.config.rows, self.cell.states

        @pl.when(self.lane > 0)
        def _() -> None:
            guess = self.cell.step(self.gates(slot, first - 1), self.w, self.zeros())
            for k in range(K):
                self.refs.starts[slot, self.lane, k] = guess[k]

        start = tuple(self.refs.starts[slot, self.lane, k] for k in range(K))
        self.guess(slot, first)
        start, delta = lax.fori_loop(0, iterations, partial(self.iteration, slot, first), (start, self.zeros()))
        return self.finish(slot, first, left, start, delta, off)

    def guess(self, slot: Any, first: Any) -> None:
        def position(s: Any, _: None) -> None:
            states = self.cell.step(self.gates(slot, first + s), self.w, self.zeros())
            self.write(first + s, states, ((self.full(0.0),) * self.cell.states,) * self.cell.states)

        lax.fori_loop(0, self.config.rows, position, None)

    def iteration(self, slot: Any, first: Any, i: Any, carried: tuple[State, State]) -> tuple[State, State]:
        start, delta = carried
        K = self.cell.states

        def position(s: Any, carried: tuple[State, Rows, State]) -> tuple[State, Rows, State]:
            before, A, b = carried
            states = self.read(first + s, delta)
            after, J = self.cell.linearized(self.gates(slot, first + s), self.w, before)
            A, b = composed(J, A), plus(applied(J, b), minus(after, states))
            self.write(first + s, plus(states, b), A)
            return states, A, b

        one = tuple(tuple(self.full(float(k == j)) for j in range(K)) for k in range(K))
        _, A, b = lax.fori_loop(0, self.config.rows, position, (start, one, self.zeros()))
        delta = self.exchanged(lax.rem(i, 2), A, b)
        return plus(start, delta), delta

    def exchanged(self, slot: Any, A: Rows, b: State) -> State:
        """The change before this lane: the maps of all earlier lanes, one after another."""
        K = self.cell.states
        for number, value in enumerate((*(a for row in A for a in row), *b)):
            self.refs.sent[slot, self.lane, number] = value
        self.meet()

        def earlier(lane: Any, delta: State) -> State:
            sent = tuple(self.refs.sent[slot, lane, number] for number in range(K * K + K))
            A = tuple(sent[k * K : k * K + K] for k in range(K))
            return plus(applied(A, delta), sent[K * K :])

        return lax.fori_loop(0, self.lane, earlier, self.zeros())

    def finish(self, slot: Any, first: Any, left: Any, start: State, delta: State, off: Array) -> tuple[State, Array]:
        """Applies the last change and measures the residual over the first `left` positions of the tile."""

        def position(s: Any, carried: tuple[State, Array]) -> tuple[State, Array]:
            before, off = carried
            states = self.read(first + s, delta)
            after = self.cell.step(self.gates(slot, first + s), self.w, before)
            there = (first + s < left).astype(jnp.float32)
            for ref, value in zip(self.refs.states, states, strict=True):
                ref[first + s] = value
            return states, jnp.maximum(off, furthest(after, states) * there)

        return lax.fori_loop(0, self.config.rows, position, (start, off))

    def read(self, position: Any, delta: State) -> State:
        """The iterate: what the last walk left, with the change that came in."""
        K = self.cell.states
        A = tuple(tuple(self.refs.maps[k * K + j][position] for j in range(K)) for k in range(K))
        return plus(tuple(ref[position] for ref in self.refs.states), applied(A, delta))

    def write(self, position: Any, states: State, A: Rows) -> None:
        for ref, value in zip(
            (*self.refs.states, *self.refs.maps), (*states, *(a for row in A for a in row)), strict=True
        ):
            ref[position] = value

"""The solver as one Hopper kernel.

One block of threads a (batch row, channel tile); it walks all of time in tiles of lanes * rows positions and passes no state to
other blocks. A lane of time is `rows` neighbouring positions; 128 threads hold 128 / channels lanes (at least one), every thread
one channel of one lane. Gate inputs of a tile come by TMA, in the order [position in lane, lane, channel], the next tile's
meanwhile. hopper_walk.py is what one warpgroup does in a tile.
"""

from functools import partial
from math import prod
from typing import Any

import jax
from jax import Array, lax
from jax import numpy as jnp

from kernels_pallas.compat import mosaic_gpu, pl
from kernels_pallas.newton.core import Cell, State
from kernels_pallas.newton.hopper_walk import Config, Shared, Walk

SHARED_MEMORY = 232_448
MULTIPROCESSORS = 132
ALIGNED = 8  # TMA: strides are multiples of 16 bytes


def candidates(cell: Cell, itemsize: int) -> list[Config]:
    """Configurations that fit into a block's shared memory and registers."""
    shapes = [(8, 128), (8, 64), (8, 32), (4, 128), (4, 64), (4, 32), (4, 256)]
    found = [Config(warpgroups, rows, channels) for warpgroups, channels in shapes for rows in (4, 3, 2, 8)]
    return [config for config in found if _bytes(cell, config, itemsize) <= SHARED_MEMORY]


def default(cell: Cell, B: int, D: int, itemsize: int) -> Config:
    """Eight warpgroups, which fill a multiprocessor, and as many channels as leave work for each of them."""
    fitting = candidates(cell, itemsize)
    wide = next((c for c in (128, 64) if 0.9 * c * MULTIPROCESSORS <= B * D), 32)
    return next(config for config in fitting if config.channels == wide)


def _bytes(cell: Cell, config: Config, itemsize: int) -> int:
    """Of shared memory, with a little for barriers."""
    gates, *others = (prod(ref.shape) for ref in jax.tree.leaves(_shared(cell, config, jnp.float32)))
    return gates * itemsize + 4 * sum(others) + 1024


def _shared(cell: Cell, config: Config, dtype: Any) -> Shared:
    K, S, L, R, C = cell.states, config.rows, config.lanes, config.side, config.channels

    def floats(*shape: int) -> Any:
        return mosaic_gpu.SMEM(shape, jnp.float32)

    return Shared(
        gates=mosaic_gpu.SMEM((2, 3 * S, L, C), dtype),
        weights=floats(cell.weights, R, C),
        states=tuple(floats(S, L, C) for _ in range(K)),
        maps=tuple(floats(S, L, C) for _ in range(K * K)),
        starts=floats(K, R + L, C),
        sent=floats(2, K * K + K, config.before + L, C),
        worst=floats(L, C),
    )


def solve(
    cell: Cell, x: Array, w: State, start: State, iterations: int, config: Config, interpret: Any = None
) -> tuple[State, Array]:
    """(states [B,T,D] each, residual [B]), all float32; x [B,T,3,D], w [D] each, start [B,D] each.

    Time is filled up to a multiple of `rows`, channels to one of 8, both to a tile at least; that copies x where they are none.

    Raises:
      ValueError: where the config takes more shared memory than there is.
    """
    B, T, _, D = x.shape
    K, S, L, R, C = cell.states, config.rows, config.lanes, config.side, config.channels
    if (needed := _bytes(cell, config, x.dtype.itemsize)) > SHARED_MEMORY:
        raise ValueError(
            f"newton_{cell.name}: {config} takes {needed} bytes of shared memory, there are {SHARED_MEMORY}"
        )
    width = max(C, -(-D // ALIGNED) * ALIGNED)
    time = max(S * L, -(-T // S) * S)
    x = jnp.pad(x, ((0, 0), (0, time - T), (0, 0), (0, width - D))).reshape(B, time // S, 3 * S, width)
    w, start = (_widened(v, width) for v in (w, start))
    sequence = jax.ShapeDtypeStruct((B, time // S, S, width), jnp.float32)
    *states, worst = mosaic_gpu.kernel(
        partial(_body, cell, iterations, config, T),
        out_type=[*[sequence] * K, jax.ShapeDtypeStruct((B, L, width), jnp.float32)],
        scratch_types=[
            _shared(cell, config, x.dtype),
            mosaic_gpu.Barrier(num_arrivals=3 * S, num_barriers=2),
            mosaic_gpu.Barrier(num_arrivals=1 + K),
            mosaic_gpu.Barrier(num_arrivals=config.warpgroups),
        ],
        grid=(B, pl.cdiv(width, C)),
        grid_names=("batch", "channels"),
        num_threads=config.warpgroups,
        thread_name="warpgroup",
        interpret=interpret,
    )(x, jnp.broadcast_to(jnp.stack(w)[:, None], (cell.weights, R, width)), jnp.stack(start, 1))
    return tuple(h.reshape(B, time, width)[:, :T, :D] for h in states), worst[..., :D].max((1, 2))


def _widened(arrays: State, width: int) -> State:
    """Their channels filled up to `width` with zeros."""
    return tuple(jnp.pad(v, (*[(0, 0)] * (v.ndim - 1), (0, width - v.shape[-1]))) for v in arrays)


def _body(cell: Cell, iterations: int, config: Config, T: int, *refs: Any) -> None:
    (x, weights, first), states, worst = refs[:3], refs[3 : 3 + cell.states], refs[3 + cell.states]
    shared, loaded, placed, everyone = refs[4 + cell.states :]
    warpgroup, row = lax.axis_index("warpgroup"), lax.axis_index("batch")
    channels = pl.ds(lax.axis_index("channels") * config.channels, config.channels)
    S, L, R = config.rows, config.lanes, config.side
    tiles = pl.cdiv(T, S * L)

    def load(t: Any) -> None:
        slot = lax.rem(t, 2)

        def copy(i: Any, _: None) -> None:
            source = x.at[row, pl.ds(t * L, L), i, channels]
            mosaic_gpu.copy_gmem_to_smem(source, shared.gates.at[slot, i], loaded.at[slot])

        lax.fori_loop(0, 3 * S, copy, None)

    @pl.when(warpgroup == 0)
    def _() -> None:
        mosaic_gpu.copy_gmem_to_smem(weights.at[:, :, channels], shared.weights, placed)
        for k in range(cell.states):
            mosaic_gpu.copy_gmem_to_smem(first.at[row, k, channels], shared.starts.at[k, R - 1], placed)
        load(jnp.int32(0))

    mosaic_gpu.barrier_wait(placed)
    walk = Walk(cell, config, shared, everyone, warpgroup, tuple(shared.weights[i] for i in range(cell.weights)))
    walk.prepare()

    def tile(t: Any, off: Array) -> Array:
        @pl.when((warpgroup == 0) & (t + 1 < tiles))
        def _() -> None:
            load(t + 1)

        slot = lax.rem(t, 2)
        mosaic_gpu.barrier_wait(loaded.at[slot])
        mosaic_gpu.wait_smem_to_gmem(0, wait_read_only=True)
        last, off = walk.solve(slot, iterations, T - t * (S * L), off)
        mosaic_gpu.commit_smem()

        def copy(s: Any, _: None) -> None:
            for source, target in zip(shared.states, states, strict=True):
                lanes = pl.ds(t * L + warpgroup * R, R)
                mosaic_gpu.copy_smem_to_gmem(source.at[s, walk.own()], target.at[row, lanes, s, channels])

        lax.fori_loop(0, S, copy, None)
        walk.meet()
        walk.carry(last)
        return off

    shared.worst[walk.own()] = lax.fori_loop(0, tiles, tile, walk.full(0.0))
    mosaic_gpu.commit_smem()
    mosaic_gpu.copy_smem_to_gmem(shared.worst.at[walk.own()], worst.at[row, walk.own(), channels])
    mosaic_gpu.wait_smem_to_gmem(0)

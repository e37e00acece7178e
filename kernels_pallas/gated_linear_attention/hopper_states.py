"""The pass over a sequence's chunks, with the state of one head and 64 value channels in registers the whole way.

    forward    o_n  = q_start_n S_n + weights_n v_n          S_n+1 = gamma_n * S_n + k_end_n^T v_n
    reverse    dv_n = k_end_n dS_n + weights_n^T do_n        dS_n-1 = gamma_n * dS_n + q_start_n^T do_n

These are one program: `read` and `write` change places, chunks come in the other order and the weights are transposed. States
are kept as [V,K], so that gamma scales columns; a bfloat16 copy of the state is what wgmma reads and what is saved.

A block has one or two warpgroups that compute, each with 64 value channels, and one that loads what all of them read, some
chunks ahead.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import mosaic_gpu as mgpu
from kernels_pallas.compat import pl
from kernels_pallas.gated_linear_attention.hopper_tiles import (
    CHUNK,
    WIDTH,
    group_of,
    over,
    part,
    put,
    shared,
    struct,
)


def pass_states(
    read: Array,
    write: Array,
    weights: Array,
    gamma: Array,
    x: Array,
    state: Array,
    *,
    reverse: bool = False,
    save: bool = False,
    stages: int = 2,
    warpgroups: int = 1,
    interpret: Any = None,
) -> tuple[Array, ...]:
    """One pass; T is a multiple of 64, K and V of 64.

    Args:
      read, write: [B,T,H,K] bfloat16, q_start and k_end (the other way round in reverse).
      weights: [B,T,H,64] bfloat16.
      gamma: [B,N,H,K] float32.
      x: [B,T,G,V] bfloat16, values (or cotangents of outputs).
      state: [B,H,V,K] float32, before the first chunk passed.
      save: also returns the state before each chunk passed.
      stages: chunks in flight.
      warpgroups: that compute; V is a multiple of 64 times that.

    Returns:
      y [B,T,H,V] bfloat16, the state after the last chunk passed [B,H,V,K] float32, and [B,N,H,V,K] bfloat16 if saved.
    """
    B, T, H, K = read.shape
    G, V = x.shape[2:]
    N = T // CHUNK
    stages = min(stages, N)
    out_type = [struct((B, T, H, V), x.dtype), struct((B, H, V, K), jnp.float32)]
    kernel = mgpu.kernel(
        _body(Pass(H, G, K // WIDTH, N, stages, warpgroups, reverse, save, interpret is not None)),
        out_type=tuple(out_type + [struct((B, N, H, V, K), x.dtype)] * save),
        scratch_types=(
            shared(stages, CHUNK, K),
            shared(stages, CHUNK, K),
            shared(stages, CHUNK, CHUNK),
            mgpu.SMEM((stages, K), jnp.float32),
            shared(stages, warpgroups, CHUNK, WIDTH),
            shared(warpgroups, WIDTH, K),
            shared(warpgroups, CHUNK, WIDTH),
            mgpu.Barrier(num_arrivals=4 + warpgroups, num_barriers=stages),
            mgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
        ),
        grid=(V // (warpgroups * WIDTH), H, B),
        grid_names=("values", "head", "batch"),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=mgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    return kernel(read, write, weights, gamma, x, state)


def shared_bytes(stages: int, warpgroups: int, K: int) -> int:
    """Of shared memory that a block takes."""
    tokens = 2 * CHUNK * (2 * K + CHUNK + warpgroups * WIDTH) + 4 * K
    return stages * tokens + 2 * warpgroups * WIDTH * (K + CHUNK)


class Pass(NamedTuple):
    """What the kernel knows when it is compiled."""

    H: int
    G: int
    tiles: int  # of 64 key channels
    N: int
    stages: int
    warpgroups: int
    reverse: bool
    save: bool
    simulated: bool

    def place(self, step: Array) -> Array:
        """The chunk of a step."""
        return self.N - 1 - step if self.reverse else step


def _body(p: Pass):
    def body(*refs):
        sources, state_ref, outputs, scratch = refs[:5], refs[5], refs[6 : 8 + p.save], refs[8 + p.save :]
        *buffers, S_tile, y_tile, loaded, free = scratch
        batch, head, block = (lax.axis_index(name) for name in ("batch", "head", "values"))
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup == p.warpgroups)
        def _():
            _load(p, sources, buffers, loaded, free, batch, head, block)

        @pl.when(warpgroup < p.warpgroups)
        def _():
            values = part(block * p.warpgroups + warpgroup, WIDTH)
            tiles = S_tile.at[warpgroup], y_tile.at[warpgroup]
            *shared_buffers, x = buffers
            mine = [*shared_buffers, x.at[:, warpgroup]]
            _compute(p, mine, tiles, loaded, free, (batch, head, values), state_ref, outputs)

    return body


def _load(p: Pass, sources, buffers, loaded, free, batch, head, block) -> None:
    """The loading warpgroup: a chunk's tiles as soon as all others have left their place; it stays until all have left."""
    group = group_of(head, p.H, p.G)

    def load(step, slot):
        place, arrived = p.place(step), loaded.at[slot]
        time = part(place, CHUNK)
        *tokens, gamma, x = sources
        *tiles, row, columns = (buffer.at[slot] for buffer in buffers)
        for source, tile in zip(tokens, tiles, strict=True):
            mgpu.copy_gmem_to_smem(source.at[batch, time, head], tile, arrived)
        mgpu.copy_gmem_to_smem(gamma.at[batch, place, head], row, arrived)
        for i in range(p.warpgroups):
            values = part(block * p.warpgroups + i, WIDTH)
            mgpu.copy_gmem_to_smem(x.at[batch, time, group, values], columns.at[i], arrived)

    def chunk(step, nothing):
        slot = lax.rem(step, jnp.int32(p.stages))

        @pl.when(step >= p.stages)
        def _():
            mgpu.barrier_wait(free.at[slot])

        pl.when(step < p.N)(lambda: load(step, slot))
        return nothing

    over(p.N + p.stages, chunk, None)


def _compute(p: Pass, buffers, tiles, loaded, free, place, state_ref, outputs) -> None:
    """A computing warpgroup, from the state that enters to the one that leaves."""
    (batch, head, values), (S_tile, y_tile), (y_ref, last_ref, *saved) = place, tiles, outputs

    def chunk(step, S):
        slot = lax.rem(step, jnp.int32(p.stages))
        mgpu.barrier_wait(loaded.at[slot])
        mgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for i, tile in enumerate(S):
            S_tile[:, part(i, WIDTH)] = tile.astype(S_tile.dtype)
        mgpu.commit_smem()
        if p.save:
            mgpu.copy_smem_to_gmem(S_tile, saved[0].at[batch, p.place(step), head, values])
        y, S = _step(p, [buffer.at[slot] for buffer in buffers], S_tile, S)
        mgpu.commit_smem()
        mgpu.barrier_arrive(free.at[slot])
        put(y_tile, y)
        mgpu.copy_smem_to_gmem(y_tile, y_ref.at[batch, part(p.place(step), CHUNK), head, values])
        return S

    first = state_ref.at[batch, head, values]
    S = tuple(mgpu.load(first.at[:, part(i, WIDTH)], layout=mgpu.Layout.WGMMA, optimized=False) for i in range(p.tiles))
    S = over(p.N, chunk, S)
    for i, tile in enumerate(S):
        last_ref[batch, head, values, part(i, WIDTH)] = tile
    mgpu.wait_smem_to_gmem(0)


def _step(p: Pass, chunk, S_tile, S: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    """The output of a chunk [64,V], and the state after it as tiles [V,64]."""
    read, write, weights, gamma, x = chunk

    def body(y, *sums):
        kept = [_decayed(tile, gamma.at[part(i, WIDTH)]) for i, tile in enumerate(S)]
        if not p.simulated:
            for total, tile in zip(sums, kept, strict=True):
                total[...] = tile
        mgpu.wgmma(y, read, S_tile.transpose((1, 0)))
        mgpu.wgmma(y, weights.transpose((1, 0)) if p.reverse else weights, x)
        for i, total in enumerate(sums):
            mgpu.wgmma(total, x.transpose((1, 0)), write.at[:, part(i, WIDTH)])
        if p.simulated:  # the simulator knows no accumulator that begins with a value
            return y[...], tuple(tile + total[...] for tile, total in zip(kept, sums, strict=True))
        return y[...], tuple(total[...] for total in sums)

    square = mgpu.ACC((CHUNK, WIDTH), jnp.float32)
    return pl.run_scoped(body, square, *(square,) * p.tiles)


def _decayed(tile: Array, gamma) -> Array:
    """Columns of a tile of the state, scaled."""
    decay = mgpu.load(gamma, layout=mgpu.Layout.WGMMA.reduce(0))
    return lax.broadcast_in_dim(decay, tile.shape, [1]) * tile

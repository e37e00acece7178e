"""The gradients of queries, keys and gates of one chunk, one block of threads a chunk, head and 64 key channels.

With dP = tril(do v^T), and the levels, decays and X of hopper_tiles and hopper_intra:

    dq = start * (do S_n)      + sum over levels of decay * (dP X)    in the later blocks,    + diag(dP) k
    dk = end * (v dS_n+1)      + sum over levels of decay * (dP^T X)  in the earlier blocks,  + diag(dP) q
    dg_t = sum_{i >= t} (q dq - k dk)_i + rowsum_V(S_n+1 * dS_n+1),   i inside the chunk

A level's two matmuls fill different rows, so they go into one accumulator. In dg the part of k dk that goes to the chunk's end
is taken out of S_n+1 = gamma * S_n + k_end^T v, where it would cancel: what is left is a sum over i < t.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import mosaic_gpu as mgpu
from kernels_pallas.compat import pl
from kernels_pallas.gated_linear_attention.hopper_tiles import (
    CHUNK,
    LEVELS,
    WIDTH,
    after,
    between,
    decay,
    diagonal,
    group_of,
    hidden,
    later,
    matmul,
    over,
    pairs,
    part,
    put,
    rows_and_columns,
    shared,
    split,
    split_gates,
    struct,
    summed,
    tile_of,
    upto,
    wide,
    zeros,
)

STAGES = 2


def gradients(
    q: Array,
    k: Array,
    v: Array,
    log_alpha: Array,
    gamma: Array,
    do: Array,
    states: Array,
    dstates: Array,
    interpret: Any = None,
) -> tuple[Array, Array, Array]:
    """Cotangents of q and k (bfloat16) and of log_alpha (float32), each [B,T,H,K]; heads of a group are not summed yet.

    Args:
      q, k, v, log_alpha, gamma: as in `intra` and `pass_states`.
      do: [B,T,H,V] bfloat16.
      states, dstates: [B,N,H,V,K] bfloat16, S_n before chunk n and dS_n+1 after it.
    """
    B, T, H, K = q.shape
    V = v.shape[-1]
    tile = shared(STAGES, CHUNK, WIDTH)
    kernel = mgpu.kernel(
        _body(H, k.shape[2], V // WIDTH, interpret is not None),
        out_type=(
            struct((B, T, H, K), q.dtype),
            struct((B, T, H, K), q.dtype),
            struct((B, T, H, K), jnp.float32),
        ),
        scratch_types=(
            shared(2, CHUNK, WIDTH),
            shared(1, CHUNK, WIDTH, dtype=jnp.float32),
            *(tile,) * 4,
            mgpu.Barrier(num_arrivals=3),
            mgpu.Barrier(num_arrivals=4, num_barriers=STAGES),
        ),
        grid=(K // WIDTH, T // CHUNK, H * B),
        grid_names=("keys", "chunk", "sequence"),
        compiler_params=mgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    return kernel(q, k, log_alpha, gamma, v, do, states, dstates)


def _body(H: int, G: int, value_tiles: int, simulated: bool):
    def body(q_ref, k_ref, g_ref, gamma_ref, *refs):
        sources, (dq_ref, dk_ref, dg_ref), (qk, gate, *buffers, entered, loaded) = refs[:4], refs[4:7], refs[7:]
        sequence, chunk, channels = lax.axis_index("sequence"), lax.axis_index("chunk"), lax.axis_index("keys")
        batch, head = lax.div(sequence, jnp.int32(H)), lax.rem(sequence, jnp.int32(H))
        group, time, channels = group_of(head, H, G), part(chunk, CHUNK), part(channels, WIDTH)
        q, k, g = qk.at[0], qk.at[1], gate.at[0]
        mgpu.copy_gmem_to_smem(q_ref.at[batch, time, head, channels], q, entered)
        mgpu.copy_gmem_to_smem(k_ref.at[batch, time, group, channels], k, entered)
        mgpu.copy_gmem_to_smem(g_ref.at[batch, time, group, channels], g, entered)

        def load(i, slot):
            v_ref, do_ref, S_ref, dS_ref = sources
            v, do, S, dS = (buffer.at[slot] for buffer in buffers)
            values = part(i, WIDTH)
            mgpu.copy_gmem_to_smem(v_ref.at[batch, time, group, values], v, loaded.at[slot])
            mgpu.copy_gmem_to_smem(do_ref.at[batch, time, head, values], do, loaded.at[slot])
            mgpu.copy_gmem_to_smem(S_ref.at[batch, chunk, head, values, channels], S, loaded.at[slot])
            mgpu.copy_gmem_to_smem(dS_ref.at[batch, chunk, head, values, channels], dS, loaded.at[slot])

        sums = _contract(load, buffers, loaded, value_tiles, simulated)
        mgpu.barrier_wait(entered)
        gamma = gamma_ref.at[batch, chunk, head, channels]
        tiles = partial(hidden, (qk, 2), (gate, 1), *((buffer, STAGES) for buffer in buffers))
        _inside(tiles, gamma, sums, simulated)
        mgpu.copy_smem_to_gmem(q, dq_ref.at[batch, time, head, channels])
        mgpu.copy_smem_to_gmem(k, dk_ref.at[batch, time, head, channels])
        mgpu.copy_smem_to_gmem(g, dg_ref.at[batch, time, head, channels])
        mgpu.wait_smem_to_gmem(0)

    return body


def _contract(load, buffers, loaded, tiles: int, simulated: bool):
    """Sums over the value channels: do v^T, do S, v dS and the columns of S * dS."""

    def add(i, sums):
        dP, dq, dk, through = sums
        slot = lax.rem(i, jnp.int32(STAGES))
        mgpu.barrier_wait(loaded.at[slot])
        v, do, S, dS = (buffer.at[slot] for buffer in buffers)
        through = through + (wide(S) * wide(dS)).sum(axis=0)
        dP = matmul((do, v.transpose((1, 0))), onto=dP, simulated=simulated)
        dq = matmul((do, S), onto=dq, simulated=simulated)
        dk = matmul((v, dS), onto=dk, simulated=simulated)
        mgpu.commit_smem()

        @pl.when(i + STAGES < tiles)
        def _():
            load(i + STAGES, slot)

        return dP, dq, dk, through

    for i in range(min(STAGES, tiles)):
        load(jnp.int32(i), i)
    nothing = mgpu.layout_cast(jnp.zeros((WIDTH,), jnp.float32), mgpu.Layout.WGMMA.reduce(0))
    square = zeros(CHUNK, WIDTH)
    return lax.optimization_barrier(over(tiles, add, (square, square, square, nothing)))


def _inside(tiles: Callable, gamma, sums: tuple[Array, ...], simulated: bool) -> None:
    """Leaves dq, dk and dg where q, k and g were, from the sums over the value channels."""
    dP, dq, dk, through = sums
    q, k, g, high, low, _, marks, dP_tile, block, *_ = tiles()
    put(dP_tile, dP)
    split_gates(tile_of(g), high, low)
    put(g, dk * decay(after(), marks, high, low))
    dq = dq * decay(upto(), marks, high, low)
    put(block, jnp.where(diagonal(), wide(dP_tile), 0.0))
    dq = matmul((block, k), onto=dq, simulated=simulated)
    dk = matmul((block, q))

    def level(l, sums):
        dq, dk = sums
        q, k, _, high, low, x, marks, dP_tile, block, *_ = tiles()
        passed = decay(between(l), marks, high, low)
        put(x, jnp.where(later(l), wide(q), wide(k)) * passed)
        put(block, jnp.where(pairs(l), wide(dP_tile), 0.0))
        both = matmul((block, x), (block.transpose((1, 0)), x)) * passed
        return dq + jnp.where(later(l), both, 0.0), dk + jnp.where(later(l), 0.0, both)

    dq, dk = over(LEVELS, level, (dq, dk))
    q, k, g, high, low, _, marks, _, _, high_end, low_end = tiles()
    split(wide(q) * dq - wide(k) * dk, high, low)
    split(wide(k) * tile_of(g), high_end, low_end)
    put(q, dq)
    put(k, dk + tile_of(g))
    row, column = rows_and_columns()
    through = through * mgpu.load(gamma, layout=mgpu.Layout.WGMMA.reduce(0), optimized=False)
    dg = lax.broadcast_in_dim(through, (CHUNK, WIDTH), [1])
    dg = dg + summed(column >= row, marks, high, low)
    put(g, dg + summed(column < row, marks, high_end, low_end))

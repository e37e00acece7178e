"""What a chunk knows by itself, one block of threads a chunk and head: weights of token pairs, decayed queries and keys.

    q_start = q * start     k_end = k * end     gamma = exp(sum of the chunk's log gates)
    weights = sum over levels of tril(X X^T),  X = q * decay in the later blocks, k * decay in the earlier ones;  + diag(q k^T)

Each level is one wgmma; nothing is done pair by pair.
"""

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import mosaic_gpu as mgpu
from kernels_pallas.gated_linear_attention.hopper_tiles import (
    CHUNK,
    LEVELS,
    WIDTH,
    after,
    between,
    diagonal,
    group_of,
    later,
    matmul,
    over,
    pairs,
    part,
    put,
    shared,
    split,
    struct,
    summed,
    tile_of,
    upto,
    wide,
    zeros,
)


def intra(q: Array, k: Array, log_alpha: Array, interpret=None) -> tuple[Array, Array, Array, Array]:
    """Per chunk of 64 tokens; T is a multiple of 64, K of 64.

    Args:
      q: [B,T,H,K] bfloat16.
      k: [B,T,G,K] bfloat16.
      log_alpha: [B,T,G,K] float32, finite, <= 0.

    Returns:
      q_start, k_end [B,T,H,K] and weights [B,T,H,64] (row t: its pairs with the tokens of its chunk) in bfloat16,
      gamma [B,N,H,K] float32.
    """
    B, T, H, K = q.shape
    kernel = mgpu.kernel(
        _body(H, k.shape[2], K // WIDTH),
        out_type=(
            struct((B, T, H, K), q.dtype),
            struct((B, T, H, K), q.dtype),
            struct((B, T, H, CHUNK), q.dtype),
            struct((B, T // CHUNK, H, K), jnp.float32),
        ),
        scratch_types=(
            shared(CHUNK, WIDTH),
            shared(CHUNK, WIDTH),
            shared(CHUNK, WIDTH, dtype=jnp.float32),
            shared(CHUNK, WIDTH),
            shared(CHUNK, WIDTH),
            shared(CHUNK, WIDTH),
            shared(CHUNK, CHUNK),
            mgpu.SMEM((WIDTH,), jnp.float32),
            mgpu.Barrier(num_arrivals=3),
        ),
        grid=(T // CHUNK, H, B),
        grid_names=("chunk", "head", "batch"),
        compiler_params=mgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    return kernel(q, k, log_alpha)


def _body(H: int, G: int, tiles: int):
    def body(q_ref, k_ref, g_ref, qs_ref, ke_ref, weights_ref, gamma_ref, q, k, g, high, low, x, marks, row, loaded):
        batch, head, chunk = (lax.axis_index(name) for name in ("batch", "head", "chunk"))
        group = group_of(head, H, G)
        time = part(chunk, CHUNK)

        def tile(i, P):
            channels = part(i, WIDTH)
            mgpu.copy_gmem_to_smem(q_ref.at[batch, time, head, channels], q, loaded)
            mgpu.copy_gmem_to_smem(k_ref.at[batch, time, group, channels], k, loaded)
            mgpu.copy_gmem_to_smem(g_ref.at[batch, time, group, channels], g, loaded)
            mgpu.barrier_wait(loaded)
            gates = tile_of(g)
            split(gates, high, low)
            row[...] = jnp.exp(gates.sum(axis=0))
            P = P + jnp.where(diagonal(), matmul((q, k.transpose((1, 0)))), 0.0)

            def level(l, P):
                decay = jnp.exp(summed(between(l), marks, high, low))
                values = jnp.where(later(l), wide(q), wide(k))
                put(x, values * decay)
                return P + jnp.where(pairs(l), matmul((x, x.transpose((1, 0)))), 0.0)

            P = over(LEVELS, level, P)
            start = jnp.exp(summed(upto(), marks, high, low))
            put(q, wide(q) * start)
            end = jnp.exp(summed(after(), marks, high, low))
            put(k, wide(k) * end)
            mgpu.copy_smem_to_gmem(q, qs_ref.at[batch, time, head, channels])
            mgpu.copy_smem_to_gmem(k, ke_ref.at[batch, time, head, channels])
            mgpu.copy_smem_to_gmem(row, gamma_ref.at[batch, chunk, head, channels])
            mgpu.wait_smem_to_gmem(0)
            return P

        put(marks, over(tiles, tile, zeros(CHUNK, CHUNK)))
        mgpu.copy_smem_to_gmem(marks, weights_ref.at[batch, time, head])
        mgpu.wait_smem_to_gmem(0)

    return body

"""What a chunk knows by itself, one block of threads a chunk and head: weights of token pairs, decayed queries and keys.

    q_start = q * start     k_end = k * end     gamma = exp(sum of the chunk's log gates)
    weights = sum over levels of tril(X X^T),  X = q * decay in the later blocks, k * decay in the earlier ones;  + diag(q k^T)

Each level is one wgmma; nothing is done pair by pair.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import mosaic_gpu as mgpu
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
    shared,
    split_gates,
    struct,
    tile_of,
    upto,
    wide,
    zeros,
)


def intra(q: Array, k: Array, log_alpha: Array, interpret: Any = None) -> tuple[Array, Array, Array, Array]:
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
            shared(6, CHUNK, WIDTH),
            shared(1, CHUNK, WIDTH, dtype=jnp.float32),
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
    def body(q_ref, k_ref, g_ref, qs_ref, ke_ref, weights_ref, gamma_ref, buffer, gate, row, loaded):
        batch, head, chunk = (lax.axis_index(name) for name in ("batch", "head", "chunk"))
        group, time = group_of(head, H, G), part(chunk, CHUNK)

        def tile(i, P):
            channels = part(i, WIDTH)
            q, k, g = buffer.at[0], buffer.at[1], gate.at[0]
            mgpu.copy_gmem_to_smem(q_ref.at[batch, time, head, channels], q, loaded)
            mgpu.copy_gmem_to_smem(k_ref.at[batch, time, group, channels], k, loaded)
            mgpu.copy_gmem_to_smem(g_ref.at[batch, time, group, channels], g, loaded)
            mgpu.barrier_wait(loaded)
            P = _inside(partial(hidden, (buffer, 6), (gate, 1)), row, P)
            mgpu.copy_smem_to_gmem(q, qs_ref.at[batch, time, head, channels])
            mgpu.copy_smem_to_gmem(k, ke_ref.at[batch, time, head, channels])
            mgpu.copy_smem_to_gmem(row, gamma_ref.at[batch, chunk, head, channels])
            mgpu.wait_smem_to_gmem(0)
            return P

        P = over(tiles, tile, zeros(CHUNK, CHUNK))
        put(buffer.at[2], P)
        mgpu.copy_smem_to_gmem(buffer.at[2], weights_ref.at[batch, time, head])
        mgpu.wait_smem_to_gmem(0)

    return body


def _inside(tiles: Callable, row, P: Array) -> Array:
    """Adds a tile's part to P, and leaves q_start, k_end and gamma in the places of q, k and in `row`."""
    q, k, high, low, _, _, g = tiles()
    gates = tile_of(g)
    split_gates(gates, high, low)
    row[...] = jnp.exp(gates.sum(axis=0))
    P = P + jnp.where(diagonal(), matmul((q, k.transpose((1, 0)))), 0.0)

    def level(l, P):
        q, k, high, low, x, marks, _ = tiles()
        passed = decay(between(l), marks, high, low)
        put(x, jnp.where(later(l), wide(q), wide(k)) * passed)
        return P + jnp.where(pairs(l), matmul((x, x.transpose((1, 0)))), 0.0)

    P = over(LEVELS, level, P)
    q, k, high, low, _, marks, _ = tiles()
    put(q, wide(q) * decay(upto(), marks, high, low))
    put(k, wide(k) * decay(after(), marks, high, low))
    return P

"""The pass over a sequence's chunks, with the state of one head and 64 value channels in registers the whole way.

    forward    o_n  = q_start_n S_n + weights_n v_n          S_n+1 = gamma_n * S_n + k_end_n^T v_n
    reverse    dv_n = k_end_n dS_n + weights_n^T do_n        dS_n-1 = gamma_n * dS_n + q_start_n^T do_n

These are one program: `read` and `write` change places, chunks come in the other order and the weights are transposed. States
are kept as [V,K], so that gamma scales columns; a bfloat16 copy of the state is what wgmma reads and what is saved.
"""

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import mosaic_gpu as mgpu
from kernels_pallas.compat import pl
from kernels_pallas.gated_linear_attention.hopper_tiles import (
    CHUNK,
    WIDTH,
    group_of,
    matmul,
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
    interpret=None,
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

    Returns:
      y [B,T,H,V] bfloat16, the state after the last chunk passed [B,H,V,K] float32, and [B,N,H,V,K] bfloat16 if saved.
    """
    B, T, H, K = read.shape
    G, V = x.shape[2:]
    N = T // CHUNK
    stages = min(stages, N)
    out_type = [struct((B, T, H, V), x.dtype), struct((B, H, V, K), jnp.float32)]
    kernel = mgpu.kernel(
        _body(H, G, K // WIDTH, N, stages, reverse, save, interpret is not None),
        out_type=tuple(out_type + [struct((B, N, H, V, K), x.dtype)] * save),
        scratch_types=(
            shared(stages, CHUNK, K),
            shared(stages, CHUNK, K),
            shared(stages, CHUNK, CHUNK),
            shared(stages, CHUNK, WIDTH),
            mgpu.SMEM((stages, K), jnp.float32),
            shared(WIDTH, K),
            shared(CHUNK, WIDTH),
            mgpu.Barrier(num_arrivals=5, num_barriers=stages),
        ),
        grid=(V // WIDTH, H, B),
        grid_names=("values", "head", "batch"),
        compiler_params=mgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    return kernel(read, write, weights, gamma, x, state)


def _body(H: int, G: int, tiles: int, N: int, stages: int, reverse: bool, save: bool, simulated: bool):
    def body(*refs):
        inputs, (y_ref, last_ref, *saved), scratch = refs[:6], refs[6 : 8 + save], refs[8 + save :]
        *sources, state_ref = inputs
        *buffers, S_tile, y_tile, loaded = scratch
        batch, head, value = (lax.axis_index(name) for name in ("batch", "head", "values"))
        group, values = group_of(head, H, G), part(value, WIDTH)

        def place(step):
            return N - 1 - step if reverse else step

        def load(step, slot):
            chunk = place(step)
            time = part(chunk, CHUNK)
            read_ref, write_ref, weights_ref, gamma_ref, x_ref = sources
            read, write, weights, x, gamma = (buffer.at[slot] for buffer in buffers)
            mgpu.copy_gmem_to_smem(read_ref.at[batch, time, head], read, loaded.at[slot])
            mgpu.copy_gmem_to_smem(write_ref.at[batch, time, head], write, loaded.at[slot])
            mgpu.copy_gmem_to_smem(weights_ref.at[batch, time, head], weights, loaded.at[slot])
            mgpu.copy_gmem_to_smem(x_ref.at[batch, time, group, values], x, loaded.at[slot])
            mgpu.copy_gmem_to_smem(gamma_ref.at[batch, chunk, head], gamma, loaded.at[slot])

        def chunk(step, S):
            slot = lax.rem(step, jnp.int32(stages))
            mgpu.barrier_wait(loaded.at[slot])
            read, write, weights, x, gamma = (buffer.at[slot] for buffer in buffers)
            mgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for i, tile in enumerate(S):
                S_tile[:, part(i, WIDTH)] = tile.astype(S_tile.dtype)
            mgpu.commit_smem()
            if save:
                mgpu.copy_smem_to_gmem(S_tile, saved[0].at[batch, place(step), head, values])
            weights = weights.transpose((1, 0)) if reverse else weights
            put(y_tile, matmul((read, S_tile.transpose((1, 0))), (weights, x)))
            mgpu.copy_smem_to_gmem(y_tile, y_ref.at[batch, part(place(step), CHUNK), head, values])
            S = tuple(_next(tile, i, x, write, gamma, simulated) for i, tile in enumerate(S))

            @pl.when(step + stages < N)
            def _():
                mgpu.commit_smem()
                load(step + stages, slot)

            return S

        for step in range(stages):
            load(jnp.int32(step), step)
        S = tuple(
            mgpu.load(state_ref.at[batch, head, values, part(i, WIDTH)], layout=mgpu.Layout.WGMMA, optimized=False)
            for i in range(tiles)
        )
        S = over(N, chunk, S)
        for i, tile in enumerate(S):
            last_ref[batch, head, values, part(i, WIDTH)] = tile
        mgpu.wait_smem_to_gmem(0)

    return body


def _next(tile: Array, i: int, x, write, gamma, simulated: bool) -> Array:
    """The i-th tile [V,K] of the state after a chunk."""
    channels = part(i, WIDTH)
    decay = mgpu.load(gamma.at[channels], layout=mgpu.Layout.WGMMA.reduce(0))
    kept = lax.broadcast_in_dim(decay, tile.shape, [1]) * tile
    return matmul((x.transpose((1, 0)), write.at[:, channels]), onto=kept, simulated=simulated)

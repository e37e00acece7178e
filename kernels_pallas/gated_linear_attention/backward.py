"""The gradient of chunkwise GLA in closed form (arXiv 2312.06635, section 4.3 and appendix C).

    states    dS_n = gamma^T * dS_n+1 + (Q * start)^T dO                  from the last chunk to the first
    inter     dQ = (dO S_n^T) * start,   dK = (V dS_n+1^T) * end,   dV = (K * end) dS_n+1
    intra     dP = tril(dO V^T) through the weights (intra.py),     dV += P^T dO
    gates     d log a_t = sum_{i>=t} (q_i * dq_i - k_i * dk_i) + rowsum_V(S_n+1 * dS_n+1),   i inside the chunk
              d log b_t = sum_{i>=t} (o_i * do_i - v_i * dv_i) + rowsum_K(S_n+1 * dS_n+1)

The gate's sum over the whole rest of the sequence is taken chunk by chunk: what lies behind the chunk's end is the
product of the state there and its cotangent. Sums stop at a reset. Q, K, V, the gates and the initial state are all
that is needed; states are recomputed.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.gated_linear_attention.flow import flow, times
from kernels_pallas.gated_linear_attention.intra import dot, weights, weights_backward
from kernels_pallas.gated_linear_attention.layout import Chunks, Masks
from kernels_pallas.gated_linear_attention.values import mix, mix_backward


def backward(
    x: Chunks, state: Array, do: Array, dstate: Array, sub_chunk: int, pass_states: Callable
) -> tuple[Array, Array, Array, Array | None, Array | None, Array]:
    """Cotangents of q, k, v, log_alpha, log_beta (chunk layout) and of the initial state [B,G,K,V]."""
    f = flow(x, sub_chunk)
    q, k, v, same = x.q, x.k, x.v, None if x.masks is None else x.masks.same
    beta_start, beta_end = (None, None) if f.beta is None else (f.beta.start, f.beta.end)
    k_end, v_end = times(k, f.end), times(v, beta_end)
    q_start, do_start = times(q, f.start), times(do, beta_start)
    before, last = pass_states(f.gamma, dot("nbgck,nbgcv->nbgkv", k_end, v_end, v), state)
    dU = dot("nbgrck,nbgrcv->nbgkv", q_start, do_start, v)
    dafter, dinitial = pass_states(f.gamma, dU, dstate, reverse=True)

    P = weights(q, k, f.alpha, sub_chunk)
    dP, dv = mix_backward(do, P, v, f.beta, same, sub_chunk)
    dq, dk = weights_backward(dP, q, k, f.alpha, sub_chunk)
    dq += times(dot("nbgrcv,nbgkv->nbgrck", do_start, before, v), f.start)
    dk += times(dot("nbgcv,nbgkv->nbgck", v_end, dafter, v), f.end)
    dv += times(dot("nbgck,nbgkv->nbgcv", k_end, dafter, v), beta_end)

    dq, dk = lax.optimization_barrier((dq, dk))  # else XLA sums their parts once more for the gate
    through = jnp.concatenate([before[1:], last[None]]) * dafter
    dlog_alpha = dlog_beta = None
    if x.log_alpha is not None:
        local = jnp.sum(q * dq, axis=3) - k * dk
        dlog_alpha = _gate_sum(local, jnp.sum(through, axis=-1), x.log_alpha.shape[-1], x.masks)
    if x.log_beta is not None:
        o = times(dot("nbgrck,nbgkv->nbgrcv", q_start, before, v), beta_start) + mix(P, v, f.beta, same)
        local = jnp.sum(o * do, axis=3) - v * dv
        dlog_beta = _gate_sum(local, jnp.sum(through, axis=-2), x.log_beta.shape[-1], x.masks)
    return dq, dk, dv, dlog_alpha, dlog_beta, dinitial


def _gate_sum(local: Array, behind: Array, width: int, masks: Masks | None) -> Array:
    """sum_{i>=t} local_i [N,B,G,C,D] + behind [N,B,G,D], within the run of t; a scalar gate also sums over channels."""
    if width == 1:
        local, behind = (jnp.sum(a, axis=-1, keepdims=True) for a in (local, behind))
    N, B, G, C, _ = local.shape
    later = jnp.broadcast_to(jnp.triu(jnp.ones((C, C), local.dtype)), (N, B, G, C, C))
    if masks is not None:
        later = later * masks.same
    total = jnp.einsum("nbgij,nbgjd->nbgid", later, local, precision=lax.Precision.HIGHEST)
    if masks is None:
        return total + behind[..., None, :]
    return jnp.where(masks.starts, 0, total + jnp.where(masks.leaves, behind[..., None, :], 0))

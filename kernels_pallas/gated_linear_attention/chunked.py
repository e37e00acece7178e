"""Chunkwise GLA (arXiv 2312.06635, section 4) with a closed-form gradient.

With decays start_t, end_t and gamma of a chunk (decays.py) and the weights P of its token pairs (intra.py):

    inter   O_t  = (q_t * start_t) S_n
    state   S_n+1 = gamma^T * S_n + (K * end)^T V
    intra   O   += P V

A second gate beta on the value channels enters in the same places: S_n+1 = (gamma_a^T gamma_b) * S_n + (K * end_a)^T
(V * end_b), O_t *= start_b for the inter part, and the squares of P act between V * before_b and O * after_b; halving
then goes down to single tokens.

The states S_n are passed by lax.scan over the chunks, or by an associative scan. Nothing but the inputs is kept for the
backward pass.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.gated_linear_attention import states
from kernels_pallas.gated_linear_attention.backward import backward
from kernels_pallas.gated_linear_attention.flow import flow, times
from kernels_pallas.gated_linear_attention.inputs import Inputs
from kernels_pallas.gated_linear_attention.intra import dot, weights
from kernels_pallas.gated_linear_attention.layout import cut, to_chunks, uncut
from kernels_pallas.gated_linear_attention.values import mix

STATE_PASSES = {"chunked": states.sequential, "associative": states.associative}


def chunked(x: Inputs, chunk: int, sub_chunk: int, impl: str) -> tuple[Array, Array]:
    """Returns o [B,T,G,R,V] in float32 (or float64) and the last state [B,G,R,K,V].

    Args:
      x: canonical inputs.
      chunk, sub_chunk: powers of two; short sequences take a shorter chunk.
      impl: "chunked" or "associative", how states pass between chunks.
    """
    B, T, G, R, K = x.q.shape
    V = x.v.shape[-1]
    chunk = min(chunk, 1 << (T - 1).bit_length())
    sub_chunk = min(sub_chunk, chunk)
    if x.log_beta is not None:
        alpha = jnp.zeros((), x.log_beta.dtype) if x.log_alpha is None else x.log_alpha
        x, sub_chunk = x._replace(log_alpha=jnp.broadcast_to(alpha, x.k.shape)), 1
    elif x.log_alpha is None or x.log_alpha.shape[-1] != K:
        sub_chunk = chunk
    if x.state is None:
        o, state = _chunked(
            x, jnp.zeros((B, G, K, V), jnp.promote_types(x.q.dtype, jnp.float32)), chunk, sub_chunk, impl
        )
        return o, jnp.broadcast_to(state[:, :, None], (B, G, R, K, V))
    # Heads that enter with states of their own can't share the states of their group.
    q, state = x.q.reshape(B, T, G * R, 1, K), x.state.reshape(B, G * R, K, V)
    k, v = jnp.repeat(x.k, R, axis=2), jnp.repeat(x.v, R, axis=2)
    log_alpha, log_beta = (None if a is None else jnp.repeat(a, R, axis=2) for a in (x.log_alpha, x.log_beta))
    o, state = _chunked(Inputs(q, k, v, log_alpha, log_beta, None, x.run), state, chunk, sub_chunk, impl)
    return o.reshape(B, T, G, R, V), state.reshape(B, G, R, K, V)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _chunked(x: Inputs, state: Array, chunk: int, sub_chunk: int, impl: str) -> tuple[Array, Array]:
    """As `chunked`, with one state [B,G,K,V] a group."""
    T, y = x.q.shape[1], to_chunks(x, chunk)
    f = flow(y, sub_chunk)
    beta_start, beta_end = (None, None) if f.beta is None else (f.beta.start, f.beta.end)
    U = dot("nbgck,nbgcv->nbgkv", times(y.k, f.end), times(y.v, beta_end), y.v)
    before, last = STATE_PASSES[impl](f.gamma, U, state)
    inter = times(dot("nbgrck,nbgkv->nbgrcv", times(y.q, f.start), before, y.v), beta_start)
    intra = mix(weights(y.q, y.k, f.alpha, sub_chunk), y.v, f.beta, None if y.masks is None else y.masks.same)
    return uncut(inter + intra, T), last


def _saved(x: Inputs, state: Array, chunk: int, sub_chunk: int, impl: str):
    return _chunked(x, state, chunk, sub_chunk, impl), (x, state)


def _gradients(chunk: int, sub_chunk: int, impl: str, saved: tuple[Inputs, Array], cotangents: tuple[Array, Array]):
    (x, state), (do, dlast) = saved, cotangents
    y, do, pass_states = to_chunks(x, chunk), cut(do, chunk), STATE_PASSES[impl]
    dq, dk, dv, dlog_alpha, dlog_beta, dstate = backward(y, state, do, dlast, sub_chunk, pass_states)

    def back(gradient: Array, like: Array) -> Array:
        return uncut(gradient, x.q.shape[1]).astype(like.dtype)

    dlog_alpha, dlog_beta = (None if d is None else uncut(d, x.q.shape[1]) for d in (dlog_alpha, dlog_beta))
    return Inputs(back(dq, x.q), back(dk, x.k), back(dv, x.v), dlog_alpha, dlog_beta, None, None), dstate


_chunked.defvjp(_saved, _gradients)

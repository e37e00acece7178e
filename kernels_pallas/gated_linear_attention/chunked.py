"""Chunkwise GLA (arXiv 2312.06635, section 4) with a closed-form gradient.

With decays start_t, end_t and gamma of a chunk (decays.py) and the weights P of its token pairs (intra.py):

    inter   O_t  = (q_t * start_t) S_n
    state   S_n+1 = gamma^T * S_n + (K * end)^T V
    intra   O   += P V

A second gate beta on the value channels enters in the same places: S_n+1 = (gamma_a^T gamma_b) * S_n + (K * end_a)^T (V * end_b),
O_t *= start_b for the inter part, and the squares of P act between V * before_b and O * after_b; halving then goes down to single tokens.

The states S_n are passed by lax.scan over the chunks, or by an associative scan. Nothing but the inputs is kept for the backward pass.
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
        o, state = _chunked(x._replace(state=jnp.zeros((B, G, K, V), _wide(x.q))), chunk, sub_chunk, impl)
        return o, jnp.broadcast_to(state[:, :, None], (B, G, R, K, V))
    o, state = _chunked(_one_head_a_group(x), chunk, sub_chunk, impl)
    return o.reshape(B, T, G, R, V), state.reshape(B, G, R, K, V)


def _one_head_a_group(x: Inputs) -> Inputs:
    """Heads that enter with states of their own can't share the states of their group."""
    B, T, G, R, K = x.q.shape
    own = {name: a if a is None else jnp.repeat(a, R, axis=2) for name, a in x._asdict().items() if name in _SHARED}
    state = x.state.reshape(B, G * R, K, -1)
    return x._replace(q=x.q.reshape(B, T, G * R, 1, K), state=state, **own)


_SHARED = ("k", "v", "log_alpha", "log_beta")


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _chunked(x: Inputs, chunk: int, sub_chunk: int, impl: str) -> tuple[Array, Array]:
    """As `chunked`, with one state a group: `x.state` and the result's are [B,G,K,V]."""
    T, y = x.q.shape[1], to_chunks(x, chunk)
    f = flow(y, sub_chunk)
    beta_start, beta_end = (None, None) if f.beta is None else (f.beta.start, f.beta.end)
    U = dot("nbgck,nbgcv->nbgkv", times(y.k, f.end), times(y.v, beta_end), y.v)
    before, last = STATE_PASSES[impl](f.gamma, U, x.state)
    inter = times(dot("nbgrck,nbgkv->nbgrcv", times(y.q, f.start), before, y.v), beta_start)
    intra = mix(weights(y.q, y.k, f.alpha, sub_chunk), y.v, f.beta, None if y.masks is None else y.masks.same)
    return uncut(inter + intra, T), last


def _saved(x: Inputs, chunk: int, sub_chunk: int, impl: str):
    return _chunked(x, chunk, sub_chunk, impl), x


def _gradients(chunk: int, sub_chunk: int, impl: str, x: Inputs, cotangents: tuple[Array, Array]):
    do, dlast = cotangents
    *gradients, dstate = backward(to_chunks(x, chunk), x.state, cut(do, chunk), dlast, sub_chunk, STATE_PASSES[impl])
    T, sequences = x.q.shape[1], x[:5]
    gradients = [None if g is None else uncut(g, T).astype(a.dtype) for g, a in zip(gradients, sequences, strict=True)]
    return (Inputs(*gradients, dstate, None),)


def _wide(a: Array):
    return jnp.promote_types(a.dtype, jnp.float32)


_chunked.defvjp(_saved, _gradients)

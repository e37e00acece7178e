"""The definition of GLA and its parallel form: short, slow, exact.

    recurrent   S_t = (alpha_t^T beta_t) * S_{t-1} + k_t^T v_t,   o_t = q_t S_t
    parallel    o_t = sum_{j<=t} [ sum_k q_tk k_jk exp(a_tk - a_jk) ] exp(b_t - b_j) * v_j,   a, b: cumulative log gates

The recurrent form takes T steps and holds one state (its gradient holds T of them). The parallel form forms [T,T,K]
tensors whose exponents are differences a_t - a_j <= 0, masked before `exp`: an oracle, nothing more.

Source: arXiv 2312.06635, equations 3 and 4, appendix A.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.gated_linear_attention.inputs import Inputs


def recurrent(x: Inputs) -> tuple[Array, Array]:
    """One `lax.scan` step a token. Returns o [B,T,G,R,V] and the last state [B,G,R,K,V]."""
    B, _, G, R, K = x.q.shape
    V = x.v.shape[-1]
    dtype = jnp.promote_types(x.q.dtype, jnp.float32)
    state = jnp.zeros((B, G, R, K, V), dtype) if x.state is None else x.state
    resets = None if x.run is None else jnp.diff(x.run, axis=1, prepend=0) != 0

    def body(state, token):
        q, k, v, log_alpha, log_beta, reset = token
        if reset is not None:
            state = jnp.where(reset[:, None, None, None, None], 0, state)
        return step(q, k, v, log_alpha, log_beta, state)[::-1]

    tokens = jax.tree.map(lambda a: a.swapaxes(0, 1), (x.q, x.k, x.v, x.log_alpha, x.log_beta, resets))
    state, o = lax.scan(body, state, tokens)
    return o.swapaxes(0, 1), state


def step(
    q: Array, k: Array, v: Array, log_alpha: Array | None, log_beta: Array | None, state: Array
) -> tuple[Array, Array]:
    """q [B,G,R,K], k [B,G,K], v [B,G,V], state [B,G,R,K,V] -> (o [B,G,R,V], state)."""
    q, k, v = (a.astype(state.dtype) for a in (q, k, v))
    if log_alpha is not None:
        state = jnp.exp(log_alpha)[:, :, None, :, None] * state
    if log_beta is not None:
        state = jnp.exp(log_beta)[:, :, None, None, :] * state
    state = state + (k[..., :, None] * v[..., None, :])[:, :, None]
    return jnp.einsum("bgrk,bgrkv->bgrv", q, state), state


def parallel(x: Inputs) -> tuple[Array, Array]:
    """Every pair of tokens at once. Returns o [B,T,G,R,V] and the last state [B,G,R,K,V]."""
    B, T, G, R, K = x.q.shape
    V = x.v.shape[-1]
    dtype = jnp.promote_types(x.q.dtype, jnp.float32)
    q, k, v = (a.astype(dtype) for a in (x.q, x.k, x.v))
    run = jnp.zeros((B, T), jnp.int32) if x.run is None else x.run
    seen = jnp.tril(run[:, :, None] == run[:, None, :])
    a, b = (_total(gate, (B, T, G, width)) for gate, width in ((x.log_alpha, K), (x.log_beta, V)))
    alpha, beta = (_masked_exp(t[:, :, None] - t[:, None, :], seen) for t in (a, b))  # [B,T,T,G,K], [B,T,T,G,V]
    weights = jnp.einsum("btgrk,bjgk,btjgk->btjgr", q, k, alpha)
    o = jnp.einsum("btjgr,btjgv->btgrv", weights, beta * v[:, None])
    state = jnp.einsum("bjgk,bjgv->bgkv", k * alpha[:, -1], v * beta[:, -1])[:, :, None]
    if x.state is not None:
        alpha, beta = (_masked_exp(t, run == 0) for t in (a, b))
        o += jnp.einsum("btgrk,bgrkv,btgv->btgrv", q * alpha[..., None, :], x.state, beta)
        state += alpha[:, -1, :, None, :, None] * x.state * beta[:, -1, :, None, None, :]
    return o, jnp.broadcast_to(state, (B, G, R, K, V))


def _total(gate: Array | None, shape: tuple[int, ...]) -> Array:
    return jnp.zeros(shape) if gate is None else jnp.cumsum(jnp.broadcast_to(gate, shape), axis=1)


def _masked_exp(exponent: Array, seen: Array) -> Array:
    """Zero where unseen; the mask is set before `exp`, since unseen pairs have positive exponents."""
    seen = seen[..., None, None]
    return jnp.where(seen, jnp.exp(jnp.where(seen, exponent, 0)), 0)

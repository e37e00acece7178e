"""Chunkwise GLA with secondary chunking (arXiv 2312.06635, section 4)."""

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.gated_linear_attention.inputs import Inputs


def chunked(x: Inputs, chunk: int, sub_chunk: int) -> tuple[Array, Array]:
    B, T, G, R, K = x.q.shape
    V = x.v.shape[-1]
    C = chunk
    pad = -T % C
    N = (T + pad) // C
    dtype = jnp.promote_types(x.q.dtype, jnp.float32)
    def cut(a, width=None):
        if a is None:
            a = jnp.zeros((B, T, G, width), dtype)
        a = a.astype(dtype)
        if width is not None:
            a = jnp.broadcast_to(a, (B, T, G, width))
        a = jnp.pad(a, ((0, 0), (0, pad)) + ((0, 0),) * (a.ndim - 2))
        a = a.reshape(B, N, C, *a.shape[2:])
        return jnp.moveaxis(a, 2, -2)
    q, k, v, la, lb = cut(x.q), cut(x.k), cut(x.v), cut(x.log_alpha, K), cut(x.log_beta, V)
    run = jnp.zeros((B, T), jnp.int32) if x.run is None else x.run
    run = jnp.pad(run, ((0, 0), (0, pad)), mode="edge").reshape(B, N, C)[:, :, None]  # B N 1 C
    prev = jnp.pad(run[:, :-1, :, -1:], ((0, 0), (1, 0), (0, 0), (0, 0)))
    enters, leaves = (run == prev)[..., None], (run == run[..., -1:])[..., None]
    o = jnp.zeros((*q.shape[:-1], V), dtype)
    P = jnp.sum(q * k[:, :, :, None], -1, keepdims=True)
    o = P * v[:, :, :, None]
    same = run[..., :, None] == run[..., None, :]
    s = 1
    while s < C:
        M = C // (2 * s)
        def halves(a):
            a = a.reshape(*a.shape[:-2], M, 2, s, a.shape[-1])
            return a[..., 0, :, :], a[..., 1, :, :]
        q2 = halves(q)[1]; (k1, _), (v1, _) = halves(k), halves(v)
        def decay(g):
            g1, g2 = halves(g)
            suf = jnp.flip(jnp.cumsum(jnp.flip(g1[..., 1:, :], -2), -2), -2)
            suf = jnp.concatenate([suf, jnp.zeros_like(g1[..., :1, :])], -2)
            return jnp.exp(suf), jnp.exp(jnp.cumsum(g2, -2))
        (ka, qa), (vb, ob) = decay(la), decay(lb)
        p = jnp.einsum("bngrmik,bngmjk->bngrmij", q2 * qa[:, :, :, None], k1 * ka)
        r1, r2 = halves(run[..., None])
        m = r2 == r1.swapaxes(-1, -2)
        p = jnp.where(m[:, :, :, None], p, 0)
        o2 = jnp.einsum("bngrmij,bngmjv->bngrmiv", p, v1 * vb) * ob[:, :, :, None]
        o = o + jnp.stack([jnp.zeros_like(o2), o2], -3).reshape(o.shape)
        s *= 2
    A, Bb = jnp.cumsum(la, -2), jnp.cumsum(lb, -2)
    kd = k * jnp.exp(A[..., -1:, :] - A) * leaves
    vd = v * jnp.exp(Bb[..., -1:, :] - Bb)
    local = jnp.einsum("bngck,bngcv->bngkv", kd, vd)[:, :, :, None]
    gamma = (jnp.exp(A[..., -1, :, None] + Bb[..., -1, None, :]) * enters[..., -1:, :])[:, :, :, None]
    state = jnp.zeros((B, G, R, K, V), dtype) if x.state is None else x.state
    def body(S, xs):
        g, l = xs
        return g * S + l, S
    state, S = lax.scan(body, state, (gamma.swapaxes(0, 1), local.swapaxes(0, 1)))
    o = o + jnp.einsum("bngrck,nbgrkv->bngrcv", q * (jnp.exp(A) * enters)[:, :, :, None], S) * jnp.exp(Bb)[:, :, :, None]
    o = jnp.moveaxis(o, -2, 2).reshape(B, N * C, G, R, V)[:, :T]
    return o, state

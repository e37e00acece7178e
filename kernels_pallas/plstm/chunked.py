"""Pure JAX: the coefficients of all tiles at once, then one anti-diagonal of tiles after another; matmuls inside a tile."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kernels_pallas.plstm.core import Inputs, Results, coefficients
from kernels_pallas.plstm.tiles import cut, uncut


def chunked(x: Inputs, most: int = 8) -> Results:
    """As `reference`; tiles of sides up to `most`. The gradient keeps the inputs alone and computes all else again."""
    return jax.checkpoint(_chunked, static_argnums=1)(x, most)


def _chunked(given: Inputs, most: int) -> Results:
    x = cut(given, most)
    nx, ny = x.q.shape[2:4]
    px = x.gates.rl.shape[-2]
    W = jax.checkpoint(coefficients)(x.gates)
    diagonal, row = np.meshgrid(np.arange(nx + ny - 1), np.arange(ny), indexing="ij")
    column = diagonal - row
    here = (column >= 0) & (column < nx)

    def slanted(x: Array) -> Array:
        """[diagonals,B,H,ny,...] of [B,H,nx,ny,...]."""
        return jnp.moveaxis(x[:, :, column.clip(0, nx - 1), row], 2, 0)

    def step(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        lefts, downs = carry
        q, k, v, W, top, here = now
        tops = jnp.concatenate([top[:, :, None], downs[:, :, :-1]], 2)
        out, rights, downs = jax.checkpoint(tile)(q, k, v, W, lefts, tops)
        return (jnp.where(here[:, None, None, None], rights, lefts), downs), (out, downs[:, :, -1])

    tops = jnp.moveaxis(x.top, 2, 0)[np.arange(nx + ny - 1).clip(0, nx - 1)]
    downs = jnp.zeros((*x.q.shape[:2], ny, px, *x.top.shape[-2:]), x.top.dtype)
    inputs = (*(slanted(a) for a in (x.q, x.k, x.v, W)), tops, jnp.asarray(here))
    (rights, _), (out, bottoms) = lax.scan(step, (x.left, downs), inputs)
    out = jnp.moveaxis(out, 3, 1)[np.arange(nx)[:, None] + np.arange(ny), np.arange(ny)]
    out = jnp.moveaxis(out, (0, 1), (2, 3))
    return uncut(out, rights, jnp.moveaxis(bottoms[ny - 1 :], 0, 2), given.q.shape[2:4], px)


def tile(q: Array, k: Array, v: Array, W: Array, left: Array, top: Array) -> tuple[Array, Array, Array]:
    """(out [...,n,DV], right [...,py,DK,DV], bottom [...,px,DK,DV]) of one tile, W as of `coefficients`."""
    n, py = q.shape[-2], left.shape[-3]
    C = jnp.concatenate([left, top], -3)
    wide = C.dtype
    G, M, S, T = W[..., :n, :n], W[..., :n, n:], W[..., n:, :n], W[..., n:, n:]
    scores = jnp.einsum("...nd,...md->...nm", q, k, preferred_element_type=wide)
    out = jnp.einsum("...nm,...mv->...nv", (scores * G).astype(v.dtype), v, preferred_element_type=wide)
    seen = jnp.einsum("...nd,...bdv->...bnv", q, C.astype(q.dtype), preferred_element_type=wide)
    out = out + jnp.einsum("...nb,...bnv->...nv", M, seen)
    keys = (jnp.swapaxes(S, -1, -2)[..., :, :, None] * k[..., :, None, :]).astype(k.dtype)
    C = jnp.einsum("...bc,...cdv->...bdv", T, C)
    C = C + jnp.einsum("...nbd,...nv->...bdv", keys, v, preferred_element_type=wide)
    return out, C[..., :py, :, :], C[..., py:, :, :]

"""Token-pair weights applied to values inside a chunk, and the gradient of that.

    without a value gate   O = P V,  P one lower triangular matrix
    with one (beta)        O_i = sum_j P_ij exp(b_i - b_j) * V_j, square by square:
                           O[i] += exp(b_i - b_m) * P[i,j] (exp(b_m - b_j) * V_j),   j <= m < i

Pairs of different runs (packed segments) are masked here, forward and backward.
"""

import jax.numpy as jnp
from jax import Array

from kernels_pallas.gated_linear_attention.decays import Decays
from kernels_pallas.gated_linear_attention.intra import dot, matrix, parts
from kernels_pallas.gated_linear_attention.layout import halves, joined


def mix(P: list[Array], v: Array, beta: Decays | None, same: Array | None) -> Array:
    """Blocks of P [N,B,G,R,..] and v [N,B,G,C,V] -> o [N,B,G,R,C,V]."""
    if beta is None:
        return dot("nbgrij,nbgjv->nbgriv", _masked(matrix(P), same), v, v)
    P = _masked_parts(P, same)
    o = P[0][..., 0] * v[:, :, :, None]
    for square, (before, after) in zip(P[1:], beta.pairs, strict=True):
        early = halves(v, square.shape[-1])[0] * before
        late = dot("nbgrmij,nbgmjv->nbgrmiv", square, early, v) * after[:, :, :, None]
        o += joined(jnp.zeros_like(late), late)
    return o


def mix_backward(
    do: Array, P: list[Array], v: Array, beta: Decays | None, same: Array | None, sub_chunk: int
) -> tuple[list[Array], Array]:
    """Cotangents of the blocks of P and of v from that of o [N,B,G,R,C,V]."""
    if beta is None:
        dP = _masked(dot("nbgriv,nbgjv->nbgrij", do, v, v), same)
        return parts(dP, sub_chunk), dot("nbgrij,nbgriv->nbgjv", _masked(matrix(P), same), do, v)
    P = _masked_parts(P, same)
    dblocks = [jnp.sum(do * v[:, :, :, None], axis=-1)[..., None, None]]
    dv = jnp.sum(P[0][..., 0] * do, axis=3)
    for square, (before, after) in zip(P[1:], beta.pairs, strict=True):
        size = square.shape[-1]
        early, late = halves(v, size)[0] * before, halves(do, size)[1] * after[:, :, :, None]
        dblocks.append(dot("nbgrmiv,nbgmjv->nbgrmij", late, early, v))
        dearly = dot("nbgrmij,nbgrmiv->nbgmjv", square, late, v) * before
        dv += joined(dearly, jnp.zeros_like(dearly))
    return _masked_parts(dblocks, same), dv


def _masked(P: Array, same: Array | None) -> Array:
    return P if same is None else jnp.where(same[:, :, :, None], P, 0)


def _masked_parts(P: list[Array], same: Array | None) -> list[Array]:
    if same is None:
        return P
    kept = parts(same[:, :, :, None], sub_chunk=1)
    return [jnp.where(mask, block, 0) for mask, block in zip(kept, P, strict=True)]

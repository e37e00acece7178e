"""Pairs of tokens inside one chunk: weights P_ij = sum_k q_ik k_jk exp(a_ik - a_jk), i >= j, and their gradients.

Secondary chunking by halves. The chunk's lower triangle is a square block (later half x earlier half) and two smaller
triangles, and so on down to `sub_chunk`. A square whose halves meet at m is one matmul, both exponents <= 0:

    P[i,j] = (q_i * exp(a_i - a_m)) (k_j * exp(a_m - a_j))^T,   j <= m < i

Triangles of size `sub_chunk` are computed pair by pair in log space. With a scalar gate (or none) the whole chunk is
one triangle, and that is a matmul times D_ij = exp(a_i - a_j).

Weights and their cotangents are lists of blocks: the triangles [...,C/c,c,c], then the squares [...,C/(2s),s,s] for
s = c, 2c, ..., C/2.
"""

import jax.numpy as jnp
from jax import Array

from kernels_pallas.gated_linear_attention.decays import Decays
from kernels_pallas.gated_linear_attention.layout import blocks, halves, joined, unblock


def dot(spec: str, a: Array, b: Array, like: Array) -> Array:
    """A matmul with operands in the dtype of `like` (the inputs') and float32 sums; float64 stays float64."""
    wide = jnp.promote_types(like.dtype, jnp.float32)
    return jnp.einsum(spec, a.astype(like.dtype), b.astype(like.dtype), preferred_element_type=wide)


def weights(q: Array, k: Array, alpha: Decays | None, sub_chunk: int) -> list[Array]:
    """Blocks of P [N,B,G,R,..] of q [N,B,G,R,C,K] and k [N,B,G,C,K]."""
    result = [_triangles(q, k, alpha, sub_chunk)]
    for size, (before, after) in _squares(alpha, sub_chunk):
        late, early = _later(q, size) * after[:, :, :, None], halves(k, size)[0] * before
        result.append(dot("nbgrmik,nbgmjk->nbgrmij", late, early, k))
    return result


def weights_backward(dP: list[Array], q: Array, k: Array, alpha: Decays | None, sub_chunk: int) -> tuple[Array, Array]:
    """Cotangents of q and k from those of the blocks of P."""
    dq, dk = _triangles_backward(dP[0], q, k, alpha, sub_chunk)
    for (size, (before, after)), square in zip(_squares(alpha, sub_chunk), dP[1:], strict=True):
        after = after[:, :, :, None]
        late, early = _later(q, size) * after, halves(k, size)[0] * before
        dlate = dot("nbgrmij,nbgmjk->nbgrmik", square, early, k) * after
        dearly = dot("nbgrmij,nbgrmik->nbgmjk", square, late, k) * before
        dq += joined(jnp.zeros_like(dlate), dlate)
        dk += joined(dearly, jnp.zeros_like(dearly))
    return dq, dk


def matrix(parts: list[Array]) -> Array:
    """Blocks -> [...,C,C], zeros above the diagonal."""
    P = parts[0]
    for square in parts[1:]:
        size = square.shape[-1]
        P = P.reshape(*P.shape[:-3], -1, 2, size, size)
        upper = jnp.concatenate([P[..., 0, :, :], jnp.zeros_like(square)], axis=-1)
        lower = jnp.concatenate([square, P[..., 1, :, :]], axis=-1)
        P = jnp.concatenate([upper, lower], axis=-2)
    return P[..., 0, :, :]


def parts(P: Array, sub_chunk: int) -> list[Array]:
    """[...,C,C] -> its blocks; what is above the diagonal blocks is dropped."""
    P, squares = P[..., None, :, :], []
    while P.shape[-1] > sub_chunk:
        size = P.shape[-1] // 2
        squares.append(P[..., size:, :size])
        P = jnp.stack([P[..., :size, :size], P[..., size:, size:]], axis=-3)
        P = P.reshape(*P.shape[:-4], -1, size, size)
    return [P, *squares[::-1]]


def _squares(alpha: Decays | None, sub_chunk: int):
    pairs = () if alpha is None else alpha.pairs
    return [(sub_chunk << i, pair) for i, pair in enumerate(pairs)]


def _later(q: Array, size: int) -> Array:
    return halves(q, size)[1]


def _triangles(q: Array, k: Array, alpha: Decays | None, c: int) -> Array:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if c == 1:
        return jnp.sum(q.astype(wide) * k[:, :, :, None], axis=-1)[..., None, None]
    if alpha is None or alpha.log_inside.shape[-1] == 1:
        return dot("nbgrmik,nbgmjk->nbgrmij", blocks(q, c), blocks(k, c), k) * _scalar_decay(alpha, c)
    decay = _pair_decay(alpha, c)
    return jnp.sum(blocks(q, c)[..., :, None, :] * (blocks(k, c)[..., None, :, :] * decay)[:, :, :, None], axis=-1)


def _triangles_backward(dP: Array, q: Array, k: Array, alpha: Decays | None, c: int) -> tuple[Array, Array]:
    if c == 1:
        dP = dP[..., 0]
        return dP * k[:, :, :, None], jnp.sum(dP * q, axis=3)
    q, k = blocks(q, c), blocks(k, c)
    if alpha is None or alpha.log_inside.shape[-1] == 1:
        dP = dP * _scalar_decay(alpha, c)
        dq, dk = dot("nbgrmij,nbgmjk->nbgrmik", dP, k, k), dot("nbgrmij,nbgrmik->nbgmjk", dP, q, k)
    else:
        decay = _pair_decay(alpha, c)
        dq = jnp.sum(dP[..., None] * (k[..., None, :, :] * decay)[:, :, :, None], axis=-2)
        dk = jnp.sum(jnp.sum(dP[..., None] * q[..., :, None, :], axis=3) * decay, axis=-3)
    return unblock(dq), unblock(dk)


def _scalar_decay(alpha: Decays | None, c: int) -> Array:
    """D_ij [N,B,G,1,C/c,c,c], or the causal mask where there is no gate."""
    if alpha is None:
        return jnp.tril(jnp.ones((c, c), bool))
    return _pair_decay(alpha, c)[:, :, :, None, ..., 0]


def _pair_decay(alpha: Decays, c: int) -> Array:
    """exp(a_i - a_j) for i >= j, else 0, [...,C/c,c,c,D]; masked before exp, where the exponent would be positive."""
    a = blocks(alpha.log_inside, c)
    causal = jnp.tril(jnp.ones((c, c), bool))[:, :, None]
    exponent = jnp.where(causal, a[..., :, None, :] - a[..., None, :, :], 0)
    return jnp.where(causal, jnp.exp(exponent), 0)

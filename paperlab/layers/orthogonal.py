"""Orthogonal matrices from any square ones: [..., n, n] -> [..., n, n].

    exponential   sum_{i < terms} A^i / i!,   A = mat - mat^T        16 terms are exact to rounding up to norms of about 2
    householder   -prod_i (I - 2 u_i u_i^T),  u_i = row_i / (|row_i| + eps)
    qr            Q of mat = Q R with a positive diagonal of R, so that it follows mat continuously
    qr_lapack     the same with the signs as LAPACK leaves them, which weights trained that way need

All four make the identity of the identity. Source: pLSTM (arXiv 2506.11997), appendices A.5 and A.6.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

TERMS, EPS = 16, 1e-5


def exponential(mat: Array, terms: int = TERMS) -> Array:
    """The exponential series of the skew part, cut off; by Horner's rule I + A (I + A/2 (I + A/3 ...)).

    Matrices lie along the last axis while they are multiplied: products of small matrices one by one waste a vector unit.
    """
    n, lead = mat.shape[-1], mat.shape[:-2]
    A = jnp.moveaxis((mat - mat.swapaxes(-1, -2)).reshape(-1, n, n), 0, -1)
    one = jnp.eye(n, dtype=mat.dtype)[..., None]

    def term(R: Array, i: Array) -> tuple[Array, None]:
        return one + _product(A, R) / i, None

    start = jnp.broadcast_to(one, A.shape)
    total, _ = lax.scan(term, start, jnp.arange(terms - 1, 0, -1, dtype=mat.dtype))
    return jnp.moveaxis(total, -1, 0).reshape(*lead, n, n)


def householder(mat: Array, eps: float = EPS) -> Array:
    """Minus the product of the reflections along the rows, from the first to the last; n reflections reach n x n rotations."""
    n = mat.shape[-1]
    squares = jnp.square(mat).sum(-1, keepdims=True)
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    u = mat / (norm + eps)
    total = -jnp.broadcast_to(jnp.eye(n, dtype=mat.dtype), mat.shape)
    for i in range(n):
        row = u[..., i, :]
        total = total - 2 * (total * row[..., None, :]).sum(-1, keepdims=True) * row[..., None, :]
    return total


def qr(mat: Array, positive: bool = True) -> Array:
    """Q of the QR decomposition; mat must have full rank.

    positive: turn columns so that R has a positive diagonal.
    """
    Q, R = jnp.linalg.qr(mat)
    return Q * jnp.where(jnp.diagonal(R, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[..., None, :] if positive else Q


def _product(A: Array, B: Array) -> Array:
    """[i, j, n] times [j, k, n]."""
    return (A[:, :, None] * B[None]).sum(1)


ORTHOGONAL: dict[str, Callable[[Array], Array]] = {
    "exponential": exponential,
    "householder": householder,
    "qr": qr,
    "qr_lapack": partial(qr, positive=False),
}

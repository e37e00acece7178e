"""All paths of a graph at once: blocks of edges merged two by two, the hierarchical form of a recurrence on any DAG.

With the edges in topological order the transitions are a strictly lower triangular matrix A, and

    C = b + A b + A^2 b + ... = P b,   P = (I - A)^-1          P_{e e'}: the sum over all paths from e' to e

Two neighbouring blocks of n edges, with P_1 and P_2 known inside each and B the transitions from the first into the second, are
one block of 2n: what enters the second block from the first is P_2 B P_1. log2 E merges, each a batch of matrix products.

Source: pLSTM (arXiv 2506.11997), appendix A.2, with the edges of the line graph as the nodes that are divided.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


def taken(x: Array, index: Array) -> Array:
    """x[index], and zeros where the index lies beyond."""
    return x.at[index].get(mode="fill", fill_value=0)


def paths(T: Array, level: Array, arcs: Array) -> Array:
    """P [..., E, E] of transitions T [L, ...]; level [E]: of every edge, arcs [L, 2]: (earlier, later), padding at E or beyond."""
    E = level.shape[0]
    order = jnp.argsort(level)
    place = jnp.zeros(E, jnp.int32).at[order].set(jnp.arange(E, dtype=jnp.int32))
    size = 1 << (E - 1).bit_length()
    place = jnp.concatenate([place, jnp.full(1, size, jnp.int32)])  # padding
    rows, columns = place[jnp.minimum(arcs[:, 1], E)], place[jnp.minimum(arcs[:, 0], E)]
    A = jnp.zeros((size, size, *T.shape[1:]), T.dtype).at[rows, columns].add(T, mode="drop")
    P = _inverse(jnp.moveaxis(A, (0, 1), (-2, -1)))
    return P[..., place[:E, None], place[None, :E]]


def _inverse(A: Array) -> Array:
    """(I - A)^-1 of strictly lower triangular matrices [..., n, n], n a power of two."""
    n = A.shape[-1]
    P = jnp.ones((*A.shape[:-2], n, 1, 1), A.dtype)
    side = 1
    while side < n:
        count = n // (2 * side)
        blocks = A.reshape(*A.shape[:-2], count, 2, side, count, 2, side)[..., :, 1, :, :, 0, :]
        B = jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)
        first, second = P[..., ::2, :, :], P[..., 1::2, :, :]
        across = _product(_product(second, B), first)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], -1)
        P = jnp.concatenate([upper, jnp.concatenate([across, second], -1)], -2)
        side *= 2
    return P[..., 0, :, :]


def _product(first: Array, second: Array) -> Array:
    return jnp.matmul(first, second, precision=lax.Precision.HIGHEST)


@jax.custom_vjp
def by_blocks(T: Array, b: Array, level: Array, arcs: Array) -> Array:
    """C [E, *state] = P b: T [L, ...] with as many axes as b, of size one where a transition is shared."""
    return _read(T, b, level, arcs)[0]


def _read(T: Array, b: Array, level: Array, arcs: Array) -> tuple[Array, Array]:
    shared = T.ndim
    while shared > 1 and T.shape[shared - 1] == 1:
        shared -= 1
    P = paths(T.reshape(T.shape[:shared]), level, arcs)
    return _apply(P, b, T.shape[1:shared]), P


def _apply(P: Array, b: Array, lead: tuple[int, ...]) -> Array:
    """P [*lead, E, E] over the first axis of b [E, *lead', *rest], where lead' is lead or what one of its axes stands for."""
    E, n = b.shape[0], len(lead)
    moved = jnp.moveaxis(b, 0, n).reshape(*b.shape[1 : n + 1], E, -1)
    done = _product(P, moved)
    return jnp.moveaxis(done.reshape(*b.shape[1 : n + 1], E, *b.shape[n + 1 :]), n, 0)


def _forward(T: Array, b: Array, level: Array, arcs: Array) -> tuple[Array, tuple]:
    C, P = _read(T, b, level, arcs)
    return C, (T, C, P, arcs)


def _backward(kept: tuple, g: Array) -> tuple:
    """l = P^T g, and T_{e'e} has the gradient l_e C_e'."""
    T, C, P, arcs = kept
    l = _apply(jnp.swapaxes(P, -1, -2), g, P.shape[:-2])
    dT = taken(l, arcs[:, 1]) * taken(C, arcs[:, 0])
    axes = tuple(i for i in range(T.ndim) if T.shape[i] == 1 and dT.shape[i] != 1)
    return dT.sum(axes, keepdims=True), l, None, None


by_blocks.defvjp(_forward, _backward)

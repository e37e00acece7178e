"""The linear recurrence step by step, on arrays as they lie: no axis is moved, no coefficient shifted, the gradient is one pass.

    forward     h_t = A_t h_{t-1} + b_t                                                   reads A, b; writes h
    backward    l_t = g_t + A_{t+1}^T l_{t+1},   db_t = l_t,   dA_t = l_t h_{t-1}^T       reads A, h, g; writes dA, db

T steps, as in `sequential`. What differs is traffic: a `lax.scan` wants the time axis first and so copies [B, T, D] arrays there
and back, and differentiating it keeps and shifts them once more. On a CPU that is most of the time.

Every entry of a result is written, so arrays at hand (b, A, g) are its first content, and the counter starts from an argument:
arrays made inside mix up what a custom_vjp keeps, in second derivatives of a lax.scan around it (jax 0.11.2).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from paperlab.recurrence import affine
from paperlab.recurrence.affine import Structure, Tree


def in_place(structure: Structure, axis: int, reverse: bool, A: Tree, b: Tree, h0: Tree) -> tuple[Tree, Tree]:
    """The recurrence along `axis` of every leaf; arguments and results as of `orders.scan`.

    Differentiable in reverse, as often as needed.
    """
    return _walk(structure, axis, reverse, jnp.zeros((), jnp.int32), A, b, h0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _walk(structure: Structure, axis: int, reverse: bool, zero: Array, A: Tree, b: Tree, h0: Tree) -> tuple[Tree, Tree]:
    T = _length(b, axis)

    def step(carry: tuple, _: None) -> tuple:
        i, h, out = carry
        t = T - 1 - i if reverse else i
        h = jax.tree.map(jnp.add, structure.act(_read(A, t, axis), h), _read(b, t, axis))
        return (i + 1, h, _write(out, h, t, axis)), None

    (_, last, h), _ = lax.scan(step, (zero, h0, b), None, length=T)
    return h, last


def _forward(structure: Structure, axis: int, reverse: bool, zero: Array, A: Tree, b: Tree, h0: Tree) -> tuple:
    h, last = _walk(structure, axis, reverse, zero, A, b, h0)
    return (h, last), (zero, A, h, h0)


def _backward(structure: Structure, axis: int, reverse: bool, kept: tuple, cotangents: tuple) -> tuple:
    return None, *_adjoint(structure, axis, reverse, *kept, *cotangents)


_walk.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _adjoint(
    structure: Structure, axis: int, reverse: bool, zero: Array, A: Tree, h: Tree, h0: Tree, g: Tree, g_last: Tree
) -> tuple:
    """Cotangents of A, b and h0, in one pass from the last step to the first."""
    T = _length(h, axis)

    def step(carry: tuple, _: None) -> tuple:
        i, after, dA, db = carry
        t = i if reverse else T - 1 - i
        l = jax.tree.map(jnp.add, _read(g, t, axis), after)
        A_t = _read(A, t, axis)
        of_A = structure.outer(l, _before(h, h0, t, axis, reverse))
        dA = jax.tree.map(partial(_collect, t=t, axis=axis), dA, of_A, A_t)
        return (i + 1, structure.act(structure.transpose(A_t), l), dA, _write(db, l, t, axis)), None

    start = jax.tree.map(lambda x: x if x.shape[axis] > 1 else 0 * x, A)
    (_, dh0, dA, db), _ = lax.scan(step, (zero, g_last, start, g), None, length=T)
    return dA, db, dh0


def _adjoint_forward(structure: Structure, axis: int, reverse: bool, *arguments: Tree) -> tuple:
    return _adjoint(structure, axis, reverse, *arguments), arguments


def _adjoint_backward(structure: Structure, axis: int, reverse: bool, arguments: tuple, cotangents: tuple) -> tuple:
    """By differentiating the same steps as a `lax.scan`: second derivatives are rare."""
    _, back = jax.vjp(partial(_plain_adjoint, structure, axis, reverse), *arguments[1:])
    return None, *back(cotangents)


_adjoint.defvjp(_adjoint_forward, _adjoint_backward)


def _plain_adjoint(
    structure: Structure, axis: int, reverse: bool, A: Tree, h: Tree, h0: Tree, g: Tree, g_last: Tree
) -> tuple:
    A, h, g = (jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), tree) for tree in (A, h, g))

    def solve(A: Tree, b: Tree, h0: Tree) -> Tree:
        return affine.sequential(structure, A, b, h0, not reverse)[0]

    dA, db, dh0 = affine.adjoint(structure, solve, A, h, h0, g, g_last, reverse=reverse)
    dA, db = (jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), tree) for tree in (dA, db))
    return dA, db, dh0


def _before(h: Tree, h0: Tree, t: Array, axis: int, reverse: bool) -> Tree:
    """The state that step t starts from."""
    T = _length(h, axis)
    earlier, inside = (t + 1, t < T - 1) if reverse else (t - 1, t > 0)
    stored = _read(h, jnp.clip(earlier, 0, T - 1), axis)
    return jax.tree.map(lambda x, x0: jnp.where(inside, x, x0), stored, h0)


def _collect(buffer: Array, of_A: Array, A_t: Array, *, t: Array, axis: int) -> Array:
    """One step's cotangent of A, summed to A's own shape, into its place; the sum over time where A is the same at every step."""
    x = affine.sum_to(of_A, A_t)
    if buffer.shape[axis] > 1:
        return lax.dynamic_update_index_in_dim(buffer, x, t, axis)
    return buffer + jnp.expand_dims(x, axis)


def _length(tree: Tree, axis: int) -> int:
    return jax.tree.leaves(tree)[0].shape[axis]


def _read(tree: Tree, t: Any, axis: int) -> Tree:
    def one(x: Array) -> Array:
        return lax.dynamic_index_in_dim(x, t if x.shape[axis] > 1 else 0, axis, keepdims=False)

    return jax.tree.map(one, tree)


def _write(buffers: Tree, values: Tree, t: Array, axis: int) -> Tree:
    return jax.tree.map(lambda x, v: lax.dynamic_update_index_in_dim(x, v, t, axis), buffers, values)

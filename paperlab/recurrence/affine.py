"""The engine under every linear recurrence: affine maps h -> A h + b, composed along time.

    h_t = A_t h_{t-1} + b_t                       the maps of two steps compose:  (A, b) then (A', b') = (A' A, A' b + b')

What A is (a number, a complex number, a block, a matrix) is a `Structure`: four functions on trees of arrays. The three orders of
evaluation and the backward pass are written once, for all of them; here the time axis is the first of every leaf.

    sequential    T steps, work T, memory 1 beside the output            lax.scan
    associative   2 log2 T levels, work 2 T compositions, memory T       lax.associative_scan
    chunked       T/C steps, work 2 T compositions, memory T             associative inside chunks of C, lax.scan between them

Backward: with g_t the cotangent of h_t, l_t = A_{t+1}^T l_{t+1} + g_t is a recurrence of the same structure run the other way, and
db_t = l_t, dA_t = l_t h_{t-1}^T, dh0 = A_0^T l_0. So what a gradient keeps is A and h, whatever the order of evaluation.

Source: Blelloch 1990, "Prefix sums and their applications", section 1.4; Martin and Cundy 2018 (arXiv 1709.04057), section 2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Tree = Any
CHUNK = 64


class Structure(NamedTuple):
    """What a coefficient A is, as functions on trees whose leaves may have any leading axes, which broadcast.

    act(A, h) -> A h;  compose(later, earlier) -> later earlier;  transpose(A);  outer(l, h) -> the cotangent of A in l^T (A h).
    """

    act: Callable[[Tree, Tree], Tree]
    compose: Callable[[Tree, Tree], Tree]
    transpose: Callable[[Tree], Tree]
    outer: Callable[[Tree, Tree], Tree]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def solve(structure: Structure, impl: str, reverse: bool, chunk: int, A: Tree, b: Tree, h0: Tree) -> tuple[Tree, Tree]:
    """`associative` or `chunked`, along the first axis of every leaf. Returns (h, last)."""
    if impl == "associative":
        h = _associative(structure, A, b, h0, reverse)
    else:
        h = _chunked(structure, A, b, h0, reverse, chunk)
    return h, _end(h, reverse)


def _forward(structure: Structure, impl: str, reverse: bool, chunk: int, A: Tree, b: Tree, h0: Tree) -> tuple:
    h, last = solve(structure, impl, reverse, chunk, A, b, h0)
    return (h, last), (A, h, h0)


def _backward(structure: Structure, impl: str, reverse: bool, chunk: int, kept: tuple, cotangents: tuple) -> tuple:
    def run(A: Tree, b: Tree, h0: Tree) -> Tree:
        return solve(structure, impl, not reverse, chunk, A, b, h0)[0]

    return adjoint(structure, run, *kept, *cotangents, reverse=reverse)


def adjoint(
    structure: Structure, run: Callable[..., Tree], A: Tree, h: Tree, h0: Tree, g: Tree, g_last: Tree, *, reverse: bool
) -> tuple[Tree, Tree, Tree]:
    """Cotangents of A, b and h0 from those of every state and of the last; `run(A, b, h0)` runs a recurrence the other way."""
    end = 0 if reverse else -1
    g = jax.tree.map(lambda g, last: _added(g, last, end), g, g_last)
    nothing = jax.tree.map(jnp.zeros_like, h0)
    l = run(structure.transpose(jax.tree.map(lambda x: _shifted(x, not reverse), A)), g, nothing)
    before = jax.tree.map(lambda h, h0: _entering(h, h0, reverse), h, h0)
    dA = jax.tree.map(sum_to, structure.outer(l, before), A)
    first = _at(A, -1 if reverse else 0)
    dh0 = structure.act(structure.transpose(first), _at(l, -1 if reverse else 0))
    return dA, l, jax.tree.map(sum_to, dh0, h0)


solve.defvjp(_forward, _backward)


def sequential(structure: Structure, A: Tree, b: Tree, h0: Tree, reverse: bool) -> tuple[Tree, Tree]:
    """`scan` as one `lax.scan`, the definition; differentiable in both modes."""
    invariant, varying = _split(A)

    def step(h: Tree, now: tuple) -> tuple[Tree, Tree]:
        varying, b = now
        h = jax.tree.map(jnp.add, structure.act(_join(invariant, varying), h), b)
        return h, h

    last, h = lax.scan(step, h0, (varying, b), reverse=reverse)
    return h, last


def _associative(structure: Structure, A: Tree, b: Tree, h0: Tree, reverse: bool) -> Tree:
    """h0 enters as part of the first input."""
    A = every_step(A, b)
    first = -1 if reverse else 0
    entering = structure.act(_at(A, first), h0)
    b = jax.tree.map(lambda b, x: _added(b, x, first), b, entering)
    return lax.associative_scan(partial(_then, structure), (A, b), reverse=reverse)[1]


def _chunked(structure: Structure, A: Tree, b: Tree, h0: Tree, reverse: bool, chunk: int) -> Tree:
    """Zeros fill the last chunk (in reverse the first): the states there are cut off."""
    T = length(b)
    chunk = min(chunk, T)
    fill = -T % chunk
    pad = (fill, 0) if reverse else (0, fill)
    if all(x.shape[0] == 1 for x in jax.tree.leaves(A)):  # the powers of one chunk serve every chunk
        A = jax.tree.map(lambda x: jnp.broadcast_to(x, (1, chunk, *x.shape[1:])), A)
    else:
        A = jax.tree.map(lambda x: _cut(x, pad, chunk), every_step(A, b))
    b = jax.tree.map(lambda x: _cut(x, pad, chunk), b)
    through, local = lax.associative_scan(partial(_then, structure), (A, b), reverse=reverse, axis=1)
    end = 0 if reverse else -1
    leaving, exits = jax.tree.map(lambda x: x[:, end], (through, local))
    h, _ = sequential(structure, leaving, exits, h0, reverse)
    entering = jax.tree.map(lambda h, h0: _entering(h, h0, reverse)[:, None], h, h0)
    h = jax.tree.map(jnp.add, structure.act(through, entering), local)
    keep = slice(fill, None) if reverse else slice(T)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[keep], h)


def _then(structure: Structure, earlier: tuple, later: tuple) -> tuple:
    """The monoid: first `earlier`, then `later`."""
    (A1, b1), (A2, b2) = earlier, later
    return structure.compose(A2, A1), jax.tree.map(jnp.add, structure.act(A2, b1), b2)


def reset(A: Tree, starts: Array) -> Tree:
    """A with zeros where a segment starts, so that nothing comes over its border. starts: leading axes of A's leaves."""

    def cut(x: Array) -> Array:
        shape = jnp.broadcast_shapes(x.shape[: starts.ndim], starts.shape)
        x = jnp.broadcast_to(x, (*shape, *x.shape[starts.ndim :]))
        return jnp.where(starts.reshape(*starts.shape, *(1,) * (x.ndim - starts.ndim)), 0, x)

    return jax.tree.map(cut, A)


def starts(segment_ids: Array, *, axis: int, reverse: bool) -> Array:
    """Where a state is reset: at every step whose id is not that of the step before (in reverse: after) it."""
    changed = jnp.diff(segment_ids, axis=axis) != 0
    never = jnp.zeros_like(lax.slice_in_dim(segment_ids, 0, 1, axis=axis), bool)
    return jnp.concatenate([changed, never] if reverse else [never, changed], axis=axis)


def length(tree: Tree) -> int:
    """Number of steps of a tree of inputs."""
    return jax.tree.leaves(tree)[0].shape[0]


def every_step(A: Tree, b: Tree) -> Tree:
    """A with its time axis written out."""
    T = length(b)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (T, *x.shape[1:])), A)


def _split(A: Tree) -> tuple[list, list]:
    """Leaves that are the same at every step, and the others; None in the place of a leaf of the other kind."""
    leaves = jax.tree.leaves(A)
    fixed = [x[0] if x.shape[0] == 1 else None for x in leaves]
    return [jax.tree.structure(A), fixed], [None if x.shape[0] == 1 else x for x in leaves]


def _join(invariant: list, varying: list) -> Tree:
    tree, fixed = invariant
    return jax.tree.unflatten(tree, [v if f is None else f for f, v in zip(fixed, varying, strict=True)])


def _at(tree: Tree, index: int) -> Tree:
    return jax.tree.map(lambda x: x[index], tree)


def _end(h: Tree, reverse: bool) -> Tree:
    return _at(h, 0 if reverse else -1)


def _entering(h: Array, h0: Array, reverse: bool) -> Array:
    """The state that every step starts from."""
    return jnp.concatenate([h[1:], h0[None]] if reverse else [h0[None], h[:-1]])


def _added(x: Array, at_one_end: Array, end: int) -> Array:
    """x with something added to its first (0) or last (-1) entry.

    Not by `.at[]`, nor padding by `jnp.pad`: arrays made inside mix up what a custom_vjp keeps, in second derivatives of a lax.scan
    around it (jax 0.11.2).
    """
    if end == 0:
        return jnp.concatenate([x[:1] + at_one_end[None], x[1:]])
    return jnp.concatenate([x[:-1], x[-1:] + at_one_end[None]])


def _shifted(x: Array, reverse: bool) -> Array:
    """A_{t+1} at t for a scan in reverse, else A_{t-1}; a zero takes the free place, where the state is zero anyway."""
    if x.shape[0] == 1:
        return x
    nothing = jnp.zeros_like(x[:1])
    return jnp.concatenate([x[1:], nothing] if reverse else [nothing, x[:-1]])


def _cut(x: Array, pad: tuple[int, int], chunk: int) -> Array:
    x = lax.pad(x, x.dtype.type(0), ((*pad, 0), *((0, 0, 0),) * (x.ndim - 1)))
    return x.reshape(-1, chunk, *x.shape[1:])


def sum_to(x: Array, like: Array) -> Array:
    """The sum of x over the axes along which `like` was broadcast."""
    axes = tuple(i for i, (n, m) in enumerate(zip(x.shape, like.shape, strict=True)) if m == 1 and n != 1)
    return x.sum(axes, keepdims=True).astype(like.dtype) if axes else x.astype(like.dtype)

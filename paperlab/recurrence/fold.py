"""Folds: a whole set or list to one element, x_0 op x_1 op ... op x_{N-1}.

    impl          depth                 work      for
    left_fold     N - 1 steps           N - 1     any operator, ((x_0 op x_1) op x_2) op ...
    tree_fold     ceil(log2 N) levels   N - 1     operators declared associative

The tree pairs elements (2i, 2i + 1) of a level in one call of the operator; an odd last element is carried up unchanged, never
padded with an identity. For an associative operator both folds are one function. A learnt operator is associative only as far as it
was trained to be: then the tree is a function of its own, and `associativity_loss` says how far from a monoid it is, on that tree.

Source: Ong and Velickovic 2022 (arXiv 2212.08541), section 2.5 and appendices D and E; Blelloch 1990.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

Tree = Any


@dataclass(frozen=True)
class Operator:
    """A binary operator on trees of arrays, with what its author vouches for.

    function(left, right): combines elements [..., *element], over any leading axes at once.
    associative: "exactly"; "approximately" (it was trained to be); or None, not at all, which a tree refuses.
    identity: the element that an empty set folds to, a tree of arrays without leading axes; None: empty sets are refused.
    """

    function: Callable[[Tree, Tree], Tree]
    associative: Literal["exactly", "approximately"] | None = None
    identity: Tree | None = None

    def __call__(self, left: Tree, right: Tree) -> Tree:
        return self.function(left, right)


def symmetrised(function: Callable[[Tree, Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
    """(f(x, y) + f(y, x)) / 2, commutative to the last bit, both halves in one call of f."""

    def both(left: Tree, right: Tree) -> Tree:
        found = function(
            *(jax.tree.map(lambda a, b: jnp.stack([a, b]), *pair) for pair in ((left, right), (right, left)))
        )
        return jax.tree.map(lambda x: (x[0] + x[1]) / 2, found)

    return both


def tree_fold(operator: Operator, x: Tree, mask: Array | None = None) -> Tree:
    """Folds axis 1 of every leaf by a balanced tree of ceil(log2 N) levels.

    Args:
      operator: declared associative, exactly or approximately.
      x: leaves [B, N, *element].
      mask: [B, N] of bool, True for the elements of a set, which come first in their row; all, if omitted. What is masked changes
        nothing, not even a NaN does: a row folds like the list of its elements alone.

    Returns:
      leaves [B, *element]; the operator's identity for a row without elements.

    Raises:
      ValueError: the operator is not declared associative, or there may be an empty set and no identity.
    """
    _refuse_unassociative(operator)
    nothing = _check(operator, x, mask)
    if nothing is not None and _length(x) == 0:
        return nothing
    x, valid = _masked(x, mask), mask
    while _length(x) > 1:
        x, valid = _level(operator, x, valid)
    top = jax.tree.map(lambda leaf: leaf[:, 0], x)
    return top if valid is None or nothing is None else _where(valid[:, 0], top, nothing)


def left_fold(operator: Operator, x: Tree, mask: Array | None = None, start: Tree | None = None) -> Tree:
    """Folds axis 1 from the left, one element after another; arguments as for `tree_fold`, of any operator.

    Args:
      start: [B, *element], an element before the first (a recurrent aggregator's state); the first element, if omitted.
    """
    nothing = _check(operator, x, mask) if start is None else start
    if _length(x) == 0:
        return nothing
    x = _masked(x, mask)
    state, rest = start, x
    if start is None:
        state, rest = jax.tree.map(lambda leaf: leaf[:, 0], x), jax.tree.map(lambda leaf: leaf[:, 1:], x)
    valid = None if mask is None else mask if start is not None else mask[:, 1:]

    def step(state: Tree, now: tuple) -> tuple[Tree, None]:
        x, valid = now
        new = operator(state, x)
        return (new if valid is None else _where(valid, new, state)), None

    last, _ = lax.scan(step, state, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (rest, valid)))
    return last if mask is None or nothing is None or start is not None else _where(mask[:, 0], last, nothing)


def associativity_loss(operator: Operator, x: Tree, mask: Array | None = None) -> tuple[Array, Array]:
    """How far the operator is from associative, on the tree of `tree_fold` (appendix E of the paper).

    A node ((A, B), (C, D)) gives the triples (A, B, C) and (B, C, D), a node ((A, B), c) with a leaf c gives (A, B, c), another
    node none; p, q, r being the folded sub-trees, a term is |(p op q) op r - p op (q op r)|^2, summed over the element.

    Returns:
      (sum over terms [B], number of terms [B]); their ratio is the loss of a set (0 / 0: a set without terms).

    Raises:
      ValueError: as `tree_fold`.
    """
    _refuse_unassociative(operator)
    _check(operator, x, mask)
    valid = jnp.ones(jax.tree.leaves(x)[0].shape[:2], bool) if mask is None else mask
    total, count = jnp.zeros(valid.shape[0], _dtype(x)), jnp.zeros(valid.shape[0], jnp.int32)
    x = _masked(x, mask)
    node, left, right = jnp.zeros_like(valid), x, x
    while _length(x) > 1:
        even, odd = (_every_second((x, left, right, node), start) for start in (0, 1))
        terms, counted = _terms(operator, even, odd, _every_second(valid, 1))
        total, count = total + terms, count + counted
        (x, left, right, node), valid = _grown(operator, even, odd, (x, left, right, node), valid)
    return total, count


def _terms(operator: Operator, even: tuple, odd: tuple, paired: Array) -> tuple[Array, Array]:
    """Sum and number of the terms at the nodes that join even and odd elements (value, left half, right half, is a node)."""
    (_, A, B, of_two), (c, C, D, and_two) = even, odd
    triples = [(A, B, _where(and_two, C, c), paired & of_two), (B, C, D, paired & of_two & and_two)]
    total, count = [], []
    for p, q, r, counts in triples:
        gap = jax.tree.map(jnp.subtract, operator(operator(p, q), r), operator(p, operator(q, r)))
        size = jnp.asarray(sum((leaf**2).reshape(*leaf.shape[:2], -1).sum(-1) for leaf in jax.tree.leaves(gap)))
        total.append(jnp.where(counts, size, 0).sum(1))
        count.append(counts.sum(1, dtype=jnp.int32))
    return total[0] + total[1], count[0] + count[1]


def _grown(operator: Operator, even: tuple, odd: tuple, all_of_them: tuple, valid: Array) -> tuple[tuple, Array]:
    """The elements one level up: pairs become nodes with two halves, what has no partner stays what it was."""
    paired = _every_second(valid, 1)
    whole = operator(even[0], odd[0])
    nodes = (whole, even[0], odd[0], jnp.ones_like(even[3]))
    up = _where(paired, nodes, even)
    if valid.shape[1] % 2:
        up = jax.tree.map(lambda pairs, x: jnp.concatenate([pairs, x[:, -1:]], 1), up, all_of_them)
    return up, valid[:, ::2]


def _level(operator: Operator, x: Tree, valid: Array | None) -> tuple[Tree, Array | None]:
    """One level of the tree: (2i) op (2i + 1); without a partner an element is carried up."""
    even, odd = _every_second(x, 0), _every_second(x, 1)
    up = operator(even, odd)
    if valid is not None:
        up = _where(_every_second(valid, 1), up, even)
    if _length(x) % 2:
        up = jax.tree.map(lambda pairs, leaf: jnp.concatenate([pairs, leaf[:, -1:]], 1), up, x)
    return up, None if valid is None else valid[:, ::2]


def _every_second(x: Tree, start: int) -> Tree:
    """Elements start, start + 2, ... of those that have a partner."""
    return jax.tree.map(lambda leaf: leaf[:, start : leaf.shape[1] // 2 * 2 : 2], x)


def _where(condition: Array, yes: Tree, no: Tree) -> Tree:
    def choose(yes: Array, no: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (yes.ndim - condition.ndim)), yes, no)

    return jax.tree.map(choose, yes, no)


def _masked(x: Tree, mask: Array | None) -> Tree:
    return x if mask is None else _where(mask, x, jax.tree.map(jnp.zeros_like, x))


def _length(x: Tree) -> int:
    return jax.tree.leaves(x)[0].shape[1]


def _dtype(x: Tree) -> Any:
    return jnp.result_type(*jax.tree.leaves(x), jnp.float32)


def _refuse_unassociative(operator: Operator) -> None:
    if operator.associative not in ("exactly", "approximately"):
        raise ValueError(
            "tree_fold needs an operator declared associative; use left_fold, or declare it "
            "Operator(function, associative='exactly' | 'approximately')"
        )


def _check(operator: Operator, x: Tree, mask: Array | None) -> Tree | None:
    """The identity for every row, where there is one."""
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves(x)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"x must have leaves [B, N, ...] of one B and N, got {sorted(shapes)}")
    B, N = shapes.pop()
    if mask is not None and (mask.shape != (B, N) or mask.dtype != bool):
        raise ValueError(f"mask must be bool [B, N] = {(B, N)}, got {mask.dtype}{list(mask.shape)}")
    if operator.identity is None:
        if N == 0:
            raise ValueError("an empty set folds to the operator's identity, and this operator has none")
        return None
    return jax.tree.map(
        lambda e, leaf: jnp.broadcast_to(jnp.asarray(e, leaf.dtype), (B, *leaf.shape[2:])), operator.identity, x
    )

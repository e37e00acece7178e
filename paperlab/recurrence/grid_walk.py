"""Ways over a grid: node after node, and one anti-diagonal of blocks after another.

A state on the border is [..., edges x JT, DK, DV]; None is zero. Leading axes of gates broadcast.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from paperlab.recurrence.grid_blocks import Block, Edges, Gates, in_blocks, in_rows, merged, product, single, sizes


class Words(NamedTuple):
    """q, k, v of the nodes of blocks, [..., n, D, J], as matrix products take them.

    queries: JQ of [..., n, DK];  keys: JK of [..., DK, n];  values: [..., n JV, DV].
    The sums over J, which are short, are written out below: as contractions they would cost transpositions.
    """

    queries: list[Array]
    keys: list[Array]
    values: Array


def _words(q: Array, k: Array, v: Array) -> Words:
    values = v.swapaxes(-1, -2).reshape(*v.shape[:-3], -1, v.shape[-2])
    keys = [k[..., i].swapaxes(-1, -2) for i in range(k.shape[-1])]
    return Words([q[..., i] for i in range(q.shape[-1])], keys, values)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def _inside(J: tuple, G: Array, words: Words) -> Array:
    """What the nodes of a block read of each other, [..., n, JO, DV]: attention whose weights are multiplied by G."""
    JO, JQ, JK, JV = J
    n = words.queries[0].shape[-2]
    G = G.reshape(*G.shape[:-2], n, JO, JQ, n, JK, JV)
    scores = [[product(q, k) for k in words.keys] for q in words.queries]
    products = [G[..., i, :, j, :] * scores[i][j][..., None, :, None] for i in range(JQ) for j in range(JK)]
    weights = sum(products[1:], products[0])
    return _split(product(weights.reshape(*weights.shape[:-4], n * JO, n * JV), words.values), n, JO)


def _read(J: tuple, block: Block, words: Words, left: Array | None, up: Array | None) -> Array:
    """[..., n, DV, JO]: what the nodes read of each other and of the states that enter the block."""
    n, DV = words.queries[0].shape[-2], words.values.shape[-1]

    def seen(m: Array | None, state: Array | None) -> Array | None:
        if m is None or state is None:
            return None
        m = m.reshape(*m.shape[:-2], n, *J[:2], -1)
        products = [m[..., i, :, None] * q[..., :, None, None, :] for i, q in enumerate(words.queries)]
        reading = sum(products[1:], products[0])
        reading = reading.reshape(*reading.shape[:-4], n * J[0], -1)
        return _split(product(reading, state.reshape(*state.shape[:-3], -1, DV)), n, J[0])

    inside = None if block.G is None else _inside(J, block.G, words)
    parts = [inside, seen(block.ml, left), seen(block.mu, up)]
    lead = jnp.broadcast_shapes(words.queries[0].shape[:-2], words.values.shape[:-2])
    return _sum(parts, (*lead, n, J[0], DV), words.values.dtype).swapaxes(-1, -2)


def _written(J: tuple, s: Array | None, words: Words) -> Array | None:
    """[..., border, DK, DV]: what the nodes of a block write to the states that leave it."""
    if s is None:
        return None
    DK, n = words.keys[0].shape[-2:]
    s = s.reshape(*s.shape[:-1], n, *J[2:])
    products = [s[..., :, None, :, j, :] * k[..., None, :, :, None] for j, k in enumerate(words.keys)]
    writing = sum(products[1:], products[0])
    writing = writing.reshape(*writing.shape[:-4], -1, writing.shape[-2] * writing.shape[-1])
    outer = writing * words.values if n * J[3] == 1 else product(writing, words.values)
    return _split(outer, s.shape[-4], DK)


def _passed(block: Block, writes: tuple, left: Array | None, up: Array | None, like: tuple) -> tuple[Array, Array]:
    """The states that leave a block: what it wrote and what it passes on.

    writes: to the right, down; like: (leading axes, DK, DV, dtype).
    """
    lead, DK, DV, dtype = like
    right, down = writes

    def passed(T: Array | None, state: Array | None) -> Array | None:
        if T is None or state is None:
            return None
        moved = product(T, state.reshape(*state.shape[:-2], DK * DV))
        return moved.reshape(*moved.shape[:-1], DK, DV)

    right = _sum([passed(block.rl, left), passed(block.ru, up), right], (*lead, block.ny, DK, DV), dtype)
    down = _sum([passed(block.dl, left), passed(block.du, up), down], (*lead, block.nx, DK, DV), dtype)
    return right, down


def _split(x: Array, outer: int, inner: int) -> Array:
    """[..., outer * inner, last] -> [..., outer, inner, last]."""
    return x.reshape(*x.shape[:-2], outer, inner, x.shape[-1])


def _sum(parts: list[Array | None], shape: tuple, dtype: Any) -> Array:
    some = [part for part in parts if part is not None]
    return sum(some[1:], some[0]) if some else jnp.zeros(shape, dtype)


def node_by_node(q: Array, k: Array, v: Array, gates: Gates, state: Edges | None) -> tuple[Array, Edges]:
    """Column after column, node after node."""
    J = sizes(gates)
    block = single(gates)
    X, Y, DK = q.shape[-4:-1]
    lead = jnp.broadcast_shapes(q.shape[:-4], gates.rl.shape[:-4])
    state = state or nothing(lead, X, Y, DK, v.shape[-2], gates)
    like = (lead, DK, v.shape[-2], v.dtype)

    def columns(x: Array | None, trailing: int) -> Array | None:
        """[X, Y, ...] first."""
        if x is None:
            return None
        x = jnp.broadcast_to(x, (*lead, *x.shape[-trailing - 2 :]))
        return jnp.moveaxis(x, (-trailing - 2, -trailing - 1), (0, 1))

    def column(left: Array, now: tuple) -> tuple[Array, tuple]:
        matrices, q, k, v, top = now

        def node(up: Array, now: tuple) -> tuple[Array, tuple]:
            matrices, q, k, v, left = now
            one = block.of([*matrices, None])
            words = _words(*(x[..., None, :, :] for x in (q, k, v)))
            writes = (_written(J, one.sr, words), _written(J, one.sd, words))
            right, down = _passed(one, writes, left, up, like)
            return down, (_read(J, one, words, left, up)[..., 0, :, :], right)

        bottom, (out, right) = lax.scan(node, top, (matrices, q, k, v, left))
        return right, (out, bottom)

    vertical, horizontal = (x.reshape(*lead, n, -1, *x.shape[-2:]) for x, n in zip(state, (Y, X), strict=True))
    left, top = jnp.moveaxis(vertical, -4, 0), jnp.moveaxis(horizontal, -4, 0)
    inputs = ([columns(m, 2) for m in block.matrices[:8]], *(columns(x, 2) for x in (q, k, v)), top)
    right, (out, bottom) = lax.scan(column, left, inputs)
    leaving = (jnp.moveaxis(x, 0, -4).reshape(y.shape) for x, y in zip((right, bottom), state, strict=True))
    return jnp.moveaxis(out, (0, 1), (-4, -3)), Edges(*leaving)


def by_diagonals(
    q: Array, k: Array, v: Array, gates: Gates, state: Edges | None, cut: tuple[int, int]
) -> tuple[Array, Edges]:
    """Blocks of `cut` nodes: all write at once, states pass from one anti-diagonal of blocks to the next, all read at once."""
    J = sizes(gates)
    X, Y, DK = q.shape[-4:-1]
    bx, by = X // cut[0], Y // cut[1]
    lead = jnp.broadcast_shapes(q.shape[:-4], gates.rl.shape[:-4])
    like = (lead, DK, v.shape[-2], v.dtype)
    block = merged(single(gates), cut)
    q, k, v = (in_blocks(jnp.broadcast_to(x, (*lead, *x.shape[-4:])), cut) for x in (q, k, v))
    words = _words(q, k, v)
    writes = (_written(J, block.sr, words), _written(J, block.sd, words))
    if bx == by == 1:
        alone = block.of([None if m is None else m[..., 0, 0, :, :] for m in block.matrices])
        words, writes = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[len(lead) + 2 :]), (words, writes))
        border = (None, None) if state is None else state
        out = _read(J, alone, words, *border)[..., None, None, :, :, :]
        return in_rows(out, cut), Edges(*_passed(alone, writes, border[0], border[1], like))
    state = state or nothing(lead, X, Y, DK, v.shape[-2], gates)
    left = state.vertical.reshape(*lead, by, -1, *state.vertical.shape[-2:])
    top = state.horizontal.reshape(*lead, bx, -1, *state.horizontal.shape[-2:])
    entering, leaving = _diagonals(block, writes, left, top, (bx, by), like)
    out = in_rows(_read(J, block, words, *entering), cut)
    return out, Edges(*(x.reshape(old.shape) for x, old in zip(leaving, state, strict=True)))


def nothing(lead: tuple[int, ...], X: int, Y: int, DK: int, DV: int, gates: Gates) -> Edges:
    """States of zeros on the left and upper border, as the functions here take them."""
    JT, dtype = gates.rl.shape[-1], gates.rl.dtype
    return Edges(jnp.zeros((*lead, Y * JT, DK, DV), dtype), jnp.zeros((*lead, X * JT, DK, DV), dtype))


def _diagonals(block: Block, writes: tuple, left: Array, top: Array, count: tuple[int, int], like: tuple) -> tuple:
    """The states on the way: row y of diagonal d is the block (d - y, y).

    Returns:
      (entering from the left, from above: [..., bx, by, border, DK, DV]), (leaving right [..., by, ...], below [..., bx, ...]).
    """
    bx, by = count
    length = bx + by - 1
    diagonal, row = np.meshgrid(np.arange(length), np.arange(by), indexing="ij")
    here = (diagonal >= row) & (diagonal - row < bx)

    def slanted(x: Array | None, trailing: int) -> Array | None:
        """[diagonals, ..., by, *trailing] of [..., bx, by, *trailing], with zeros where there is no block.

        Rows with `by` zeros behind each, written one after another and cut one place shorter, stand one place further each.
        """
        if x is None:
            return None
        x = jnp.moveaxis(x, (-trailing - 1, -trailing - 2), (0, 1))
        x = jnp.pad(x, [(0, 0), (0, by), *[(0, 0)] * (x.ndim - 2)])
        x = x.reshape(by * (bx + by), *x.shape[2:])[: by * length].reshape(by, length, *x.shape[2:])
        return jnp.moveaxis(x, (1, 0), (0, -trailing - 1))

    def straight(x: Array, trailing: int) -> Array:
        """The inverse."""
        x = jnp.moveaxis(x, (-trailing - 1, 0), (0, 1))
        x = jnp.pad(x.reshape(by * length, *x.shape[2:]), [(0, by), *[(0, 0)] * (x.ndim - 2)])
        x = x.reshape(by, bx + by, *x.shape[1:])[:, :bx]
        return jnp.moveaxis(x, (0, 1), (-trailing - 1, -trailing - 2))

    lead, *inner = like

    def step(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        left, down = carry
        turns, writes, top, here = now
        up = jnp.concatenate([top[..., None, :, :, :], down[..., :-1, :, :, :]], -4)
        right, down = _passed(block.of([*turns, *[None] * 5]), writes, left, up, ((*lead, by), *inner))
        return (jnp.where(here[:, None, None, None], right, left), down), (left, up, down[..., -1, :, :, :])

    tops = jnp.moveaxis(top, -4, 0)
    tops = jnp.pad(tops, [(0, by - 1), *[(0, 0)] * (tops.ndim - 1)])
    turns = [slanted(m, 2) for m in (block.rl, block.ru, block.dl, block.du)]
    inputs = (turns, (slanted(writes[0], 3), slanted(writes[1], 3)), tops, jnp.asarray(here))
    nothing = jnp.zeros((*lead, by, *top.shape[-3:]), left.dtype)
    (left, _), (lefts, ups, bottoms) = lax.scan(step, (left, nothing), inputs)
    return (straight(lefts, 3), straight(ups, 3)), (left, jnp.moveaxis(bottoms[by - 1 :], 0, -4))

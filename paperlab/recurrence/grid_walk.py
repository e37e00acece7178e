"""Ways over a grid: node after node, and one anti-diagonal of blocks after another.

Here q, k, v and states have the leading axes of everything broadcast; a state on an edge is [JT, DK, DV].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from paperlab.recurrence.grid_blocks import Block, Edges, Gates, merged, single, sizes


def _cell(block: Block, J: tuple, q: Array, k: Array, v: Array, left: Array, up: Array) -> tuple[Array, Array, Array]:
    """One block: q [..., n, DK, JQ], k, v of its nodes in its order, states [..., border, DK, DV] -> out, right, down."""
    JO, JQ, JK, JV = J
    n = q.shape[-3]

    def written(s: Array | None) -> Array | None:
        return (
            None
            if s is None
            else jnp.einsum("...rmkl,...mdk,...mvl->...rdv", s.reshape(*s.shape[:-1], n, JK, JV), k, v)
        )

    def seen(m: Array | None, state: Array) -> Array | None:
        if m is None:
            return None
        return jnp.einsum("...noqr,...ndq,...rdv->...nvo", m.reshape(*m.shape[:-2], n, JO, JQ, -1), q, state)

    def passed(T: Array | None, state: Array) -> Array | None:
        return None if T is None else jnp.einsum("...ri,...idv->...rdv", T, state)

    inside = None
    if block.G is not None:
        G = block.G.reshape(*block.G.shape[:-2], n, JO, JQ, n, JK, JV)
        scores = jnp.einsum("...ndq,...mdk->...nqmk", q, k)
        weights = jnp.einsum("...noqmkl,...nqmk->...noml", G, scores)
        inside = jnp.einsum("...noml,...mvl->...nvo", weights, v)
    shape = (*v.shape[:-1], JO)
    out = _sum([inside, seen(block.ml, left), seen(block.mu, up)], jnp.zeros(shape, v.dtype))
    right = _sum([passed(block.rl, left), passed(block.ru, up), written(block.sr)], jnp.zeros_like(left))
    down = _sum([passed(block.dl, left), passed(block.du, up), written(block.sd)], jnp.zeros_like(up))
    return out, right, down


def _sum(parts: list[Array | None], nothing: Array) -> Array:
    some = [part for part in parts if part is not None]
    return sum(some[1:], some[0]) if some else nothing


def node_by_node(q: Array, k: Array, v: Array, gates: Gates, state: Edges) -> tuple[Array, Edges]:
    """Column after column, node after node."""
    J = sizes(gates)
    block = single(gates)
    lead = state.vertical.shape[:-4]

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
            q, k, v = (x[..., None, :, :] for x in (q, k, v))
            out, right, down = _cell(one, J, q, k, v, left, up)
            return down, (out[..., 0, :, :], right)

        bottom, (out, right) = lax.scan(node, top, (matrices, q, k, v, left))
        return right, (out, bottom)

    left = jnp.moveaxis(state.vertical, -4, 0)
    top = jnp.moveaxis(state.horizontal, -4, 0)
    inputs = ([columns(m, 2) for m in block.matrices[:8]], *(columns(x, 2) for x in (q, k, v)), top)
    right, (out, bottom) = lax.scan(column, left, inputs)
    return jnp.moveaxis(out, (0, 1), (-4, -3)), Edges(jnp.moveaxis(right, 0, -4), jnp.moveaxis(bottom, 0, -4))


def by_diagonals(q: Array, k: Array, v: Array, gates: Gates, state: Edges, cut: tuple[int, int]) -> tuple[Array, Edges]:
    """Blocks of `cut` nodes; those of one anti-diagonal at once, row y of diagonal d being the block (d - y, y)."""
    J = sizes(gates)
    X, Y = q.shape[-4:-2]
    bx, by = X // cut[0], Y // cut[1]
    lead = state.vertical.shape[:-4]
    block, order = merged(single(gates), cut)
    q, k, v = (_in_blocks(jnp.broadcast_to(x, (*lead, *x.shape[-4:])), cut, order) for x in (q, k, v))
    left = state.vertical.reshape(*lead, by, -1, *state.vertical.shape[-2:])
    top = state.horizontal.reshape(*lead, bx, -1, *state.horizontal.shape[-2:])

    def cell(matrices: list, q: Array, k: Array, v: Array, left: Array, up: Array) -> tuple[Array, Array, Array]:
        return _cell(block.of(matrices), J, q, k, v, left, up)

    run = jax.checkpoint(cell)
    if bx == by == 1:
        out, right, down = run(*_only(block.matrices, (q, k, v)), left[..., 0, :, :, :], top[..., 0, :, :, :])
        out, left, bottom = out[..., None, None, :, :, :], right[..., None, :, :, :], down[..., None, :, :, :]
    else:
        out, left, bottom = _diagonals(run, block, (q, k, v), left, top, (bx, by))
    out = _in_rows(out, cut, order)
    JT = gates.rl.shape[-1]
    right = left.reshape(*lead, Y, JT, *left.shape[-2:])
    return out, Edges(right, bottom.reshape(*lead, X, JT, *bottom.shape[-2:]))


def _only(matrices: list, arrays: tuple) -> tuple:
    """The only block of a grid."""
    return [None if m is None else m[..., 0, 0, :, :] for m in matrices], *(x[..., 0, 0, :, :, :] for x in arrays)


def _diagonals(run: Callable, block: Block, arrays: tuple, left: Array, top: Array, count: tuple[int, int]) -> tuple:
    """(out [..., bx, by, n, DV, JO], states that leave to the right [..., by, ...], and at the bottom [..., bx, ...])."""
    bx, by = count
    diagonal, row = np.meshgrid(np.arange(bx + by - 1), np.arange(by), indexing="ij")
    column = diagonal - row
    here = (column >= 0) & (column < bx)
    column = column.clip(0, bx - 1)

    def slanted(x: Array | None, trailing: int) -> Array | None:
        """[diagonals, ..., by, *trailing] of [..., bx, by, *trailing]."""
        if x is None:
            return None
        x = jnp.moveaxis(x, (-trailing - 2, -trailing - 1), (0, 1))[column, row]
        return jnp.moveaxis(x, 1, -trailing - 1)

    def step(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        left, down = carry
        matrices, q, k, v, top, here = now
        up = jnp.concatenate([top[..., None, :, :, :], down[..., :-1, :, :, :]], -4)
        out, right, down = run(matrices, q, k, v, left, up)
        left = jnp.where(here[:, None, None, None], right, left)
        return (left, down), (out, down[..., -1, :, :, :])

    tops = jnp.moveaxis(top, -4, 0)[np.arange(bx + by - 1).clip(0, bx - 1)]
    inputs = ([slanted(m, 2) for m in block.matrices], *(slanted(x, 3) for x in arrays), tops, jnp.asarray(here))
    nothing = jnp.zeros((*left.shape[:-4], by, *top.shape[-3:]), left.dtype)
    (left, _), (out, bottoms) = lax.scan(step, (left, nothing), inputs)
    out = jnp.moveaxis(out, -4, 1)[np.arange(bx)[:, None] + np.arange(by), np.arange(by)]
    return jnp.moveaxis(out, (0, 1), (-5, -4)), left, jnp.moveaxis(bottoms[by - 1 :], 0, -4)


def _in_blocks(x: Array, cut: tuple[int, int], order: np.ndarray) -> Array:
    """[..., X, Y, a, b] -> [..., bx, by, nodes, a, b], nodes in the order of the blocks."""
    (cx, cy), (*lead, X, Y, a, b) = cut, x.shape
    x = x.reshape(*lead, X // cx, cx, Y // cy, cy, a, b)
    x = jnp.moveaxis(x, -5, -4).reshape(*lead, X // cx, Y // cy, cx * cy, a, b)
    return x.take(order[:, 0] * cy + order[:, 1], -3)


def _in_rows(x: Array, cut: tuple[int, int], order: np.ndarray) -> Array:
    """The inverse of `_in_blocks`."""
    (cx, cy), (*lead, bx, by, _, a, b) = cut, x.shape
    x = x.take(np.argsort(order[:, 0] * cy + order[:, 1]), -3).reshape(*lead, bx, by, cx, cy, a, b)
    return jnp.moveaxis(x, -4, -5).reshape(*lead, bx * cx, by * cy, a, b)

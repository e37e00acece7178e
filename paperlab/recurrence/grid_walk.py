"""Ways over a grid: node after node, and one anti-diagonal of blocks after another.

A state on the border is [..., edges x JT, DK, DV]; None is zero. Leading axes of gates broadcast.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from paperlab.recurrence.grid_blocks import Block, Edges, Gates, in_blocks, in_rows, merged, single, sizes


def _cell(
    block: Block, J: tuple, q: Array, k: Array, v: Array, left: Array | None, up: Array | None
) -> tuple[Array, Array, Array]:
    """One block: q [..., n, DK, JQ], k, v of its nodes in its order, states [..., border, DK, DV] -> out, right, down.

    One matrix product for every gate; a state that is None is zero. The sums over J, which are short, are written out: as
    contractions they would cost a transposition.
    """
    JO, JQ, JK, JV = J
    n, DK, DV = *q.shape[-3:-1], v.shape[-2]
    values = v.swapaxes(-1, -2).reshape(*v.shape[:-3], n * JV, DV)
    queries = [q[..., i] for i in range(JQ)]
    keys = [k[..., i].swapaxes(-1, -2) for i in range(JK)]

    def inside(G: Array | None) -> Array | None:
        if G is None:
            return None
        G = G.reshape(*G.shape[:-2], n, JO, JQ, n, JK, JV)
        products = [
            G[..., i, :, j, :] * (queries[i] @ keys[j])[..., None, :, None] for i in range(JQ) for j in range(JK)
        ]
        weights = sum(products[1:], products[0])
        return _split(weights.reshape(*weights.shape[:-4], n * JO, n * JV) @ values, n, JO)

    def seen(m: Array | None, state: Array | None) -> Array | None:
        if m is None or state is None:
            return None
        m = m.reshape(*m.shape[:-2], n, JO, JQ, -1)
        products = [m[..., i, :, None] * queries[i][..., :, None, None, :] for i in range(JQ)]
        reading = sum(products[1:], products[0])
        reading = reading.reshape(*reading.shape[:-4], n * JO, -1)
        return _split(reading @ state.reshape(*state.shape[:-3], -1, DV), n, JO)

    def written(s: Array | None) -> Array | None:
        if s is None:
            return None
        s = s.reshape(*s.shape[:-1], n, JK, JV)
        products = [s[..., :, None, :, j, :] * keys[j][..., None, :, :, None] for j in range(JK)]
        writing = sum(products[1:], products[0])
        return _split(writing.reshape(*writing.shape[:-4], -1, n * JV) @ values, s.shape[-4], DK)

    def passed(T: Array | None, state: Array | None) -> Array | None:
        if T is None or state is None:
            return None
        moved = T @ state.reshape(*state.shape[:-2], DK * DV)
        return moved.reshape(*moved.shape[:-1], DK, DV)

    lead = jnp.broadcast_shapes(q.shape[:-3], v.shape[:-3])

    def nothing(count: int, *shape: int) -> Array:
        return jnp.zeros((*lead, count, *shape), v.dtype)

    out = _sum([inside(block.G), seen(block.ml, left), seen(block.mu, up)], nothing(n, JO, DV)).swapaxes(-1, -2)
    right = _sum([passed(block.rl, left), passed(block.ru, up), written(block.sr)], nothing(block.ny, DK, DV))
    down = _sum([passed(block.dl, left), passed(block.du, up), written(block.sd)], nothing(block.nx, DK, DV))
    return out, right, down


def _split(x: Array, outer: int, inner: int) -> Array:
    """[..., outer * inner, last] -> [..., outer, inner, last]."""
    return x.reshape(*x.shape[:-2], outer, inner, x.shape[-1])


def _sum(parts: list[Array | None], nothing: Array) -> Array:
    some = [part for part in parts if part is not None]
    return sum(some[1:], some[0]) if some else nothing


def node_by_node(q: Array, k: Array, v: Array, gates: Gates, state: Edges | None) -> tuple[Array, Edges]:
    """Column after column, node after node."""
    J = sizes(gates)
    block = single(gates)
    X, Y, DK = q.shape[-4:-1]
    lead = jnp.broadcast_shapes(q.shape[:-4], gates.rl.shape[:-4])
    state = state or nothing(lead, X, Y, DK, v.shape[-2], gates)

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

    vertical, horizontal = (x.reshape(*lead, n, -1, *x.shape[-2:]) for x, n in zip(state, (Y, X), strict=True))
    left, top = jnp.moveaxis(vertical, -4, 0), jnp.moveaxis(horizontal, -4, 0)
    inputs = ([columns(m, 2) for m in block.matrices[:8]], *(columns(x, 2) for x in (q, k, v)), top)
    right, (out, bottom) = lax.scan(column, left, inputs)
    leaving = (jnp.moveaxis(x, 0, -4).reshape(y.shape) for x, y in zip((right, bottom), state, strict=True))
    return jnp.moveaxis(out, (0, 1), (-4, -3)), Edges(*leaving)


def by_diagonals(
    q: Array, k: Array, v: Array, gates: Gates, state: Edges | None, cut: tuple[int, int]
) -> tuple[Array, Edges]:
    """Blocks of `cut` nodes; those of one anti-diagonal at once, row y of diagonal d being the block (d - y, y)."""
    J = sizes(gates)
    X, Y, DK = q.shape[-4:-1]
    bx, by = X // cut[0], Y // cut[1]
    lead = jnp.broadcast_shapes(q.shape[:-4], gates.rl.shape[:-4])
    block = merged(single(gates), cut)
    q, k, v = (in_blocks(jnp.broadcast_to(x, (*lead, *x.shape[-4:])), cut) for x in (q, k, v))

    def cell(matrices: list, q: Array, k: Array, v: Array, left: Array | None, up: Array | None) -> tuple:
        return _cell(block.of(matrices), J, q, k, v, left, up)

    run = jax.checkpoint(cell)
    if bx == by == 1:
        border = (None, None) if state is None else state
        out, right, bottom = run(*_only(block.matrices, (q, k, v)), *border)
        return in_rows(out[..., None, None, :, :, :], cut), Edges(right, bottom)
    state = state or nothing(lead, X, Y, DK, v.shape[-2], gates)
    left = state.vertical.reshape(*lead, by, -1, *state.vertical.shape[-2:])
    top = state.horizontal.reshape(*lead, bx, -1, *state.horizontal.shape[-2:])
    out, left, bottom = _diagonals(run, block, (q, k, v), left, top, (bx, by))
    return in_rows(out, cut), Edges(left.reshape(state.vertical.shape), bottom.reshape(state.horizontal.shape))


def nothing(lead: tuple[int, ...], X: int, Y: int, DK: int, DV: int, gates: Gates) -> Edges:
    """States of zeros on the left and upper border, as the functions here take them."""
    JT, dtype = gates.rl.shape[-1], gates.rl.dtype
    return Edges(jnp.zeros((*lead, Y * JT, DK, DV), dtype), jnp.zeros((*lead, X * JT, DK, DV), dtype))


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

"""Blocks of a grid, merged: what a rectangle of nodes does, as matrices between its borders and its nodes.

A block of nx x ny nodes takes states on its left border (ny edges) and upper border (nx edges) to its right and lower border,
writes what its nodes say on the way out and reads what comes in:

    rl [ny, ny]  ru [ny, nx]  dl [nx, ny]  du [nx, nx]     border to border, [out, in]
    sr [ny, cols]  sd [nx, cols]                           node to right and lower border
    ml [rows, ny]  mu [rows, nx]                           left and upper border to node
    G  [rows, cols]                                        node to node

Two neighbours make a block of matrix products; None is a matrix of zeros, which stays None through every merge. Every border index
carries the state-tracking index JT inside, rows are (node, JO, JQ), columns (node, JK, JV). Leading axes: [..., blocks in x, in y].
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

Matrix = Array | None


class Gates(NamedTuple):
    """Gates of every node. J* are the sizes of state-tracking indices, all 1 in the plain model; leading axes broadcast to q's.

    source_r, source_d: [..., X, Y, JT, JK, JV], what a node writes to its edges.
    rl, ru, dl, du: [..., X, Y, JT, JT], from the left or upper edge to the right or lower one; None is zero.
    mark_l, mark_u: [..., X, Y, JO, JQ, JT], what a node reads of its edges.
    """

    source_r: Array
    source_d: Array | None
    rl: Array
    ru: Array | None
    dl: Array | None
    du: Array | None
    mark_l: Array
    mark_u: Array | None


class Edges(NamedTuple):
    """States on a border of the grid: left or right [..., Y, DK, DV, JT], top or bottom [..., X, DK, DV, JT]."""

    vertical: Array
    horizontal: Array


class Block(NamedTuple):
    """See above; nx, ny count border entries, rows and cols those of nodes."""

    rl: Matrix
    ru: Matrix
    dl: Matrix
    du: Matrix
    sr: Matrix
    sd: Matrix
    ml: Matrix
    mu: Matrix
    G: Matrix
    nx: int
    ny: int
    rows: int
    cols: int

    @property
    def matrices(self) -> list[Matrix]:
        """rl, ru, dl, du, sr, sd, ml, mu and G."""
        return list(self[:9])

    def of(self, matrices: list[Matrix]) -> "Block":
        """A block of the same sizes."""
        rl, ru, dl, du, sr, sd, ml, mu, G = matrices
        return Block(rl, ru, dl, du, sr, sd, ml, mu, G, *self[9:])


def sizes(gates: Gates) -> tuple[int, int, int, int]:
    """JO, JQ, JK, JV."""
    (JO, JQ), (JK, JV) = gates.mark_l.shape[-3:-1], gates.source_r.shape[-2:]
    return JO, JQ, JK, JV


def matrices(gates: Gates) -> list[Array | None]:
    """Every gate as matrices [..., X, Y, row, column], in the order of `grid_blocks.single`."""

    def source(s: Array | None) -> Array | None:
        return None if s is None else s.reshape(*s.shape[:-2], -1)

    def mark(m: Array | None) -> Array | None:
        return None if m is None else m.reshape(*m.shape[:-3], -1, m.shape[-1])

    g = gates
    return [g.rl, g.ru, g.dl, g.du, source(g.source_r), source(g.source_d), mark(g.mark_l), mark(g.mark_u)]


def single(gates: Gates) -> Block:
    """Every node a block of its own, [..., X, Y] of them."""
    rl, ru, dl, du, sr, sd, ml, mu = matrices(gates)
    some = next(m for m in (rl, ru, dl, du) if m is not None)
    source = next(m for m in (sr, sd) if m is not None)
    mark = next(m for m in (ml, mu) if m is not None)
    JT = some.shape[-1]
    return Block(rl, ru, dl, du, sr, sd, ml, mu, None, JT, JT, mark.shape[-2], source.shape[-1])


def merged(block: Block, size: tuple[int, int]) -> Block:
    """Blocks of single nodes merged to blocks of `size` = (x, y) nodes, which divides the grid.

    Nodes of a block stand in the order of `in_blocks`.
    """
    for along_x, factor in merges(size):
        block = _merge(block, factor, along_x)
    return block


def in_blocks(x: Array, size: tuple[int, int], trailing: int = 2) -> Array:
    """[..., X, Y, *trailing] -> [..., X / size x, Y / size y, nodes, *trailing], nodes in the order of `merged` blocks.

    What is merged last changes slowest, so the order is a transposition of the prime factors of the sides.
    """
    lead, (X, Y), last = x.shape[: x.ndim - trailing - 2], x.shape[x.ndim - trailing - 2 : x.ndim - trailing], x.ndim
    last_shape = x.shape[last - trailing :]
    split, order = _digits(size)
    x = x.reshape(*lead, X // size[0], *split[0], Y // size[1], *split[1], *last_shape)
    L = len(lead)
    axes = [*range(L), L, L + 1 + len(split[0]), *(L + 1 + place for place in order)]
    x = x.transpose(*axes, *range(len(axes), x.ndim))
    return x.reshape(*lead, X // size[0], Y // size[1], size[0] * size[1], *last_shape)


def in_rows(x: Array, size: tuple[int, int], trailing: int = 2) -> Array:
    """The inverse of `in_blocks`."""
    lead, (bx, by) = x.shape[: x.ndim - trailing - 3], x.shape[x.ndim - trailing - 3 : x.ndim - trailing - 1]
    last_shape = x.shape[x.ndim - trailing :]
    split, order = _digits(size)
    L = len(lead)
    axes = [*range(L), L, L + 1 + len(split[0]), *(L + 1 + place for place in order)]
    sizes = [*lead, bx, *split[0], by, *split[1]]
    x = x.reshape(*(sizes[axis] for axis in axes), *last_shape)
    x = x.transpose(*np.argsort(axes), *range(len(axes), x.ndim))
    return x.reshape(*lead, bx * size[0], by * size[1], *last_shape)


def mirrored(x: Array, size: tuple[int, int], along: tuple[int, ...], axis: int) -> Array:
    """x with the grid of its nodes mirrored, where `axis` numbers the nodes in the order of `merged` blocks of `size`.

    along: 0 for x, 1 for y, or both. The factors of a node's number belong to x or to y, so it is a reversal of some of them.
    """
    split, order = _digits(size)
    lengths = [split[0][p] if p < len(split[0]) else split[1][p - len(split[0]) - 1] for p in order]
    axis %= x.ndim
    turned = [axis + i for i, p in enumerate(order) if int(p >= len(split[0])) in along]
    if not turned:
        return x
    return jnp.flip(x.reshape(*x.shape[:axis], *lengths, *x.shape[axis + 1 :]), turned).reshape(x.shape)


def merges(size: tuple[int, int]) -> list[tuple[bool, int]]:
    """(along x?, how many neighbours), one merge after another: always along the side that is shorter so far."""
    factors, found = [_primes(n) for n in size], []
    wide, high = 1, 1
    while factors[0] or factors[1]:
        along_x = bool(factors[0]) and (not factors[1] or wide <= high)
        factor = factors[0 if along_x else 1].pop(0)
        found.append((along_x, factor))
        wide, high = (wide * factor, high) if along_x else (wide, high * factor)
    return found


def _digits(size: tuple[int, int]) -> tuple[tuple[list[int], list[int]], list[int]]:
    """Factors of x and y, slowest first, and the places of the factors of a node's number, slowest first, in [x.., by, y..]."""
    turns = merges(size)[::-1]
    split = [f for along_x, f in turns if along_x], [f for along_x, f in turns if not along_x]
    places, order = [0, len(split[0]) + 1], []
    for along_x, _ in turns:
        order.append(places[not along_x])
        places[not along_x] += 1
    return split, order


def divisor(n: int, most: int) -> int:
    """The largest divisor of n up to `most`."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def _primes(n: int) -> list[int]:
    """The prime factors of n, the smallest first."""
    for p in range(2, int(n**0.5) + 1):
        if n % p == 0:
            return [p, *_primes(n // p)]
    return [n] if n > 1 else []


def _merge(block: Block, factor: int, along_x: bool) -> Block:
    """Every `factor` neighbours, in pairs of pairs: ceil(log2 factor) steps."""

    def part(m: Matrix, number: int) -> Matrix:
        if m is None:
            return None
        return m[..., number::factor, :, :, :] if along_x else m[..., number::factor, :, :]

    parts = [block.of([part(m, i) for m in block.matrices]) for i in range(factor)]
    while len(parts) > 1:
        pairs = [_beside(a, b) if along_x else _below(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


def _beside(a: Block, b: Block) -> Block:
    """a, and b to its right."""
    return Block(
        rl=_times(b.rl, a.rl),
        ru=_grid([[_times(b.rl, a.ru), b.ru]], [a.ny], [a.nx, b.nx]),
        dl=_grid([[a.dl], [_times(b.dl, a.rl)]], [a.nx, b.nx], [a.ny]),
        du=_grid([[a.du, None], [_times(b.dl, a.ru), b.du]], [a.nx, b.nx], [a.nx, b.nx]),
        sr=_grid([[_times(b.rl, a.sr), b.sr]], [a.ny], [a.cols, b.cols]),
        sd=_grid([[a.sd, None], [_times(b.dl, a.sr), b.sd]], [a.nx, b.nx], [a.cols, b.cols]),
        ml=_grid([[a.ml], [_times(b.ml, a.rl)]], [a.rows, b.rows], [a.ny]),
        mu=_grid([[a.mu, None], [_times(b.ml, a.ru), b.mu]], [a.rows, b.rows], [a.nx, b.nx]),
        G=_grid([[a.G, None], [_times(b.ml, a.sr), b.G]], [a.rows, b.rows], [a.cols, b.cols]),
        nx=a.nx + b.nx,
        ny=a.ny,
        rows=a.rows + b.rows,
        cols=a.cols + b.cols,
    )


def _below(a: Block, b: Block) -> Block:
    """a, and b under it: the same with x and y, left and up, right and down exchanged."""
    return _turned(_beside(_turned(a), _turned(b)))


def _turned(a: Block) -> Block:
    return Block(a.du, a.dl, a.ru, a.rl, a.sd, a.sr, a.mu, a.ml, a.G, a.ny, a.nx, a.rows, a.cols)


def _times(a: Matrix, b: Matrix) -> Matrix:
    return None if a is None or b is None else product(a, b)


def product(a: Array, b: Array) -> Array:
    """a b; axes between the first and the matrices become one, since XLA refuses products of eight axes on a CPU (under vmap)."""
    lead = a.shape[:-2]
    if len(lead) < 3 or lead != b.shape[:-2]:
        return a @ b
    both = a.reshape(lead[0], -1, *a.shape[-2:]) @ b.reshape(lead[0], -1, *b.shape[-2:])
    return both.reshape(*lead, *both.shape[-2:])


def _grid(parts: list[list[Matrix]], rows: list[int], cols: list[int]) -> Matrix:
    """A matrix of matrices; None where all of them are zero."""
    some = [m for line in parts for m in line if m is not None]
    if not some:
        return None
    lead = jnp.broadcast_shapes(*(m.shape[:-2] for m in some))

    def full(m: Matrix, r: int, c: int) -> Array:
        return jnp.zeros((*lead, r, c), some[0].dtype) if m is None else jnp.broadcast_to(m, (*lead, r, c))

    def joined(line: list[Matrix], r: int) -> Array:
        return jnp.concatenate([full(m, r, c) for m, c in zip(line, cols, strict=True)], -1)

    return jnp.concatenate([joined(line, r) for line, r in zip(parts, rows, strict=True)], -2)

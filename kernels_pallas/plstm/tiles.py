"""A grid cut into tiles of px x py nodes, filled up with nodes that write and read nothing and let states pass straight through."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from kernels_pallas.plstm.core import Gates, Inputs, Results


class Tiles(NamedTuple):
    """nx x ny tiles, n = px py nodes each, node x py + y."""

    q: Array  # [B,H,nx,ny,n,DK]
    k: Array
    v: Array  # [B,H,nx,ny,n,DV]
    gates: Gates  # [B,H,nx,ny,px,py] each
    left: Array  # [B,H,ny,py,DK,DV]
    top: Array  # [B,H,nx,px,DK,DV]


def side(length: int, most: int) -> int:
    """The side of a tile, at most `most`, that cuts `length` into as few pieces as `most` does and wastes least."""
    pieces = -(-length // most)
    return -(-length // pieces)


def cut(x: Inputs, most: int) -> Tiles:
    """Tiles of sides up to `most`."""
    X, Y = x.q.shape[2:4]
    px, py = side(X, most), side(Y, most)
    nx, ny = -(-X // px), -(-Y // py)
    after = ((0, 0), (0, 0), (0, nx * px - X), (0, ny * py - Y))

    def nodes(x: Array) -> Array:
        B, H, *_, D = x.shape
        x = x.reshape(B, H, nx, px, ny, py, D)
        return x.swapaxes(3, 4).reshape(B, H, nx, ny, px * py, D)

    def border(x: Array, axis: int, pieces: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), after[axis], (0, 0), (0, 0)))
        return x.reshape(*x.shape[:2], pieces, -1, *x.shape[3:])

    gates = through(Gates(*(jnp.pad(g, after) for g in x.gates)), X, Y)
    gates = Gates(*(nodes(g[..., None]).reshape(*g.shape[:2], nx, ny, px, py) for g in gates))
    q, k, v = (nodes(jnp.pad(a, (*after, (0, 0)))) for a in x[:3])
    return Tiles(q, k, v, gates, border(x.left, 3, ny), border(x.top, 2, nx))


def through(gates: Gates, X: int, Y: int) -> Gates:
    """Padded gates, so that what enters a column or row beyond the grid leaves it unchanged."""
    columns, rows = (jnp.arange(n) for n in gates.rl.shape[-2:])
    rl = jnp.where((columns >= X)[:, None], 1, gates.rl)
    du = jnp.where((rows >= Y)[None, :], 1, gates.du)
    return gates._replace(rl=rl, du=du)


def uncut(out: Array, right: Array, bottom: Array, size: tuple[int, ...], px: int) -> Results:
    """out [B,H,nx,ny,n,DV], right [B,H,ny,py,DK,DV], bottom [B,H,nx,px,DK,DV] -> those of the grid, `size` = (X, Y)."""
    (B, H, nx, ny, n, DV), (X, Y) = out.shape, size
    out = out.reshape(B, H, nx, ny, px, n // px, DV).swapaxes(3, 4).reshape(B, H, nx * px, -1, DV)
    right, bottom = (x.reshape(B, H, -1, *x.shape[-2:]) for x in (right, bottom))
    return Results(out[:, :, :X, :Y], right[:, :, :Y], bottom[:, :, :X])

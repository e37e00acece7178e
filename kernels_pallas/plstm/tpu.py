"""Forward on a TPU: one program a tile, tiles of a grid one after another with the states of its border in VMEM.

The grid of programs is (batch x head, tile column, tile row), the last two in order: `right` holds the states of every row's right
edge so far, `bottom` those of the tile column's lower edges, both output blocks that stay in VMEM. A tile walks its nodes once over
the rows of its coefficients (core.py; gates are scalars in SMEM) and once over the states on its border; all else is matmuls.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import pallas_tpu, pl
from kernels_pallas.plstm.core import Gates, node, passed
from kernels_pallas.plstm.tiles import Tiles

VMEM = 48 * 2**20  # of the 64 MiB and more of a v5e, v5p or v6e


def states_memory(Y: int, DK: int, DV: int, tile: int) -> int:
    """Bytes of VMEM for the states of one program, forward or back; blocks are double, and 128 lanes wide at least."""
    return DK * -(-DV // 128) * 128 * 4 * (4 * Y + 8 * tile)


def forward(x: Tiles, save: bool = False, interpret: Any = False) -> tuple[Array, ...]:
    """(out [B,H,nx,ny,n,DV], right [B,H,ny,py,DK,DV], bottom [B,H,nx,px,DK,DV]), float32.

    With `save` also the states that enter every tile, [B H,nx,ny,py,DK,DV] from the left and [B H,nx,ny,px,DK,DV] from above.
    """
    B, H, nx, ny, n, DK = x.q.shape
    DV, (px, py) = x.v.shape[-1], x.gates.rl.shape[-2:]
    q, k, v, left, top = (a.reshape(B * H, *a.shape[2:]) for a in (x.q, x.k, x.v, x.left, x.top))
    size = n + py + px

    def nodes(D: int) -> Any:
        return pl.BlockSpec((None, None, None, n, D), lambda h, i, j: (h, i, j, 0, 0))

    def entering(count: int) -> Any:
        return pl.BlockSpec((None, None, None, count, DK, DV), lambda h, i, j: (h, i, j, 0, 0, 0))

    column = pl.BlockSpec((None, None, px, DK, DV), lambda h, i, j: (h, i, 0, 0, 0))
    rows = pl.BlockSpec((None, ny, py, DK, DV), lambda h, i, j: (h, 0, 0, 0, 0))
    shapes = [v.shape, left.shape, top.shape]
    if save:
        shapes += [(B * H, nx, ny, py, DK, DV), (B * H, nx, ny, px, DK, DV)]
    out, right, bottom, *saved = pl.pallas_call(
        partial(_body, px, py),
        grid=(B * H, nx, ny),
        in_specs=[gates_spec(n), nodes(DK), nodes(DK), nodes(DV), rows, column],
        out_specs=[nodes(DV), rows, column, *([entering(py), entering(px)] if save else [])],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        scratch_shapes=[pallas_tpu.VMEM((size, size), jnp.float32)],
        compiler_params=pallas_tpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        interpret=interpret,
        name="plstm_grid",
    )(stacked(x), q, k, v, left, top)
    return out.reshape(x.v.shape), right.reshape(x.left.shape), bottom.reshape(x.top.shape), *saved


def stacked(x: Tiles) -> Array:
    """The gates of a tile as [B H,nx,ny,9,n]."""
    B, H, nx, ny, n, _ = x.q.shape
    return jnp.stack(x.gates, -3).reshape(B * H, nx, ny, len(x.gates), n)


def gates_spec(n: int, place: Any = lambda h, i, j: (h, i, j)) -> Any:
    """The gates of one tile, as scalars."""
    block = (None, None, None, len(Gates._fields), n)
    return pl.BlockSpec(block, lambda h, i, j: (*place(h, i, j), 0, 0), memory_space=pallas_tpu.SMEM)


def _body(px: int, py: int, gates: Any, q: Any, k: Any, v: Any, left: Any, top: Any, *refs: Any) -> None:
    out, right, bottom, *saved, W = refs
    j, n = pl.program_id(2), px * py

    @pl.when((pl.program_id(1) == 0) & (j == 0))
    def _() -> None:
        right[...] = left[...]

    @pl.when(j == 0)
    def _() -> None:
        bottom[...] = top[...]

    for ref, states in zip(saved, (right.at[j], bottom), strict=False):
        ref[...] = states[...]
    walk(gates, W, px, py)
    G = W[:n, :]
    scores = dot(q[...], k[...], ((1,), (1,))) * G[:, :n]
    seen = dot(scores.astype(v.dtype), v[...])
    for first, count, states in ((n, py, right.at[j]), (n + py, px, bottom)):
        seen = lax.fori_loop(0, count, partial(_read, q, G, states, first), seen)
    out[...] = seen
    pass_through(gates, right.at[j], bottom, px, py)
    keys = k[...].astype(jnp.float32).T
    for first, count, states in ((n, py, right.at[j]), (n + py, px, bottom)):
        lax.fori_loop(0, count, partial(_write, keys, v, W, states, first), None)


def walk(gates: Any, W: Any, px: int, py: int, lefts: Any = None, ups: Any = None) -> None:
    """The coefficients of a tile into W, see `core.coefficients`; gates [9, n] in SMEM.

    Rows n to n + py hold the edges between two columns of nodes until they hold those on the right. `lefts` and `ups` [n, size]
    receive the coefficients of the states that come to every node.
    """
    n, size = px * py, W.shape[0]
    basis = partial(unit, size)

    def enter(y: Any, _: None) -> None:
        W[pl.ds(n + y, 1), :] = basis(n + y)

    lax.fori_loop(0, py, enter, None)

    def one(i: Any, up: Array) -> Array:
        x, y = lax.div(i, py), lax.rem(i, py)
        left, up = W[pl.ds(n + y, 1), :], jnp.where(y == 0, basis(n + py + x), up)
        if lefts is not None:
            lefts[pl.ds(i, 1), :], ups[pl.ds(i, 1), :] = left, up
        seen, right, down = node(scalars(gates, i), left, up, basis(i))
        W[pl.ds(i, 1), :] = seen
        W[pl.ds(n + y, 1), :] = right
        W[pl.ds(n + py + x, 1), :] = down
        return down

    lax.fori_loop(0, n, one, jnp.zeros((1, size), jnp.float32))


def unit(size: int, i: Any) -> Array:
    """Row i of the identity, [1, size]."""
    return (lax.broadcasted_iota(jnp.int32, (1, size), 1) == i).astype(jnp.float32)


def pass_through(gates: Any, rights: Any, bottoms: Any, px: int, py: int) -> None:
    """Takes the states on the borders through a tile whose nodes write nothing."""

    def one(i: Any, _: None) -> None:
        x, y = lax.div(i, py), lax.rem(i, py)
        rights[y], bottoms[x] = passed(scalars(gates, i), rights[y], bottoms[x])

    lax.fori_loop(0, px * py, one, None)


def scalars(gates: Any, i: Any) -> Gates:
    """The gates of node i."""
    return Gates(*(gates[number, i] for number in range(len(Gates._fields))))


def _read(q: Any, M: Array, states: Any, first: int, b: Any, seen: Array) -> Array:
    return seen + column_of(M, first + b, seen.shape[1]) * dot(q[...], states[b].astype(q.dtype))


def _write(keys: Array, v: Any, W: Any, states: Any, first: int, b: Any, _: None) -> None:
    n = keys.shape[1]
    scaled = keys * W[pl.ds(first + b, 1), :][:, :n]
    states[b] = states[b] + dot(scaled.astype(v.dtype), v[...])


def column_of(M: Array, number: Any, width: int) -> Array:
    """Column `number` of M, repeated `width` times."""
    here = lax.broadcasted_iota(jnp.int32, (M.shape[1], width), 0) == number
    return dot(M, here.astype(jnp.float32))


def dot(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), (0,))) -> Array:
    """A matmul in float32; of float32 operands, without rounding them to bfloat16 first."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)

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


def forward(x: Tiles, interpret: Any = False) -> tuple[Array, Array, Array]:
    """(out [B,H,nx,ny,n,DV], right [B,H,ny,py,DK,DV], bottom [B,H,nx,px,DK,DV]), float32."""
    B, H, nx, ny, n, DK = x.q.shape
    DV, (px, py) = x.v.shape[-1], x.gates.rl.shape[-2:]
    q, k, v, left, top = (a.reshape(B * H, *a.shape[2:]) for a in (x.q, x.k, x.v, x.left, x.top))
    gates = jnp.stack(x.gates, -3).reshape(B * H, nx, ny, len(x.gates), n)
    size = n + py + px

    def nodes(D: int) -> Any:
        return pl.BlockSpec((None, None, None, n, D), lambda h, i, j: (h, i, j, 0, 0))

    column = pl.BlockSpec((None, None, px, DK, DV), lambda h, i, j: (h, i, 0, 0, 0))
    rows = pl.BlockSpec((None, ny, py, DK, DV), lambda h, i, j: (h, 0, 0, 0, 0))
    scalars = pl.BlockSpec(
        (None, None, None, len(x.gates), n), lambda h, i, j: (h, i, j, 0, 0), memory_space=pallas_tpu.SMEM
    )
    out, right, bottom = pl.pallas_call(
        partial(_body, px, py),
        grid=(B * H, nx, ny),
        in_specs=[scalars, nodes(DK), nodes(DK), nodes(DV), rows, column],
        out_specs=[nodes(DV), rows, column],
        out_shape=[jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (v, left, top)],
        scratch_shapes=[pallas_tpu.VMEM((size, size), jnp.float32)],
        compiler_params=pallas_tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        interpret=interpret,
        name="plstm_grid",
    )(gates, q, k, v, left, top)
    return out.reshape(x.v.shape), right.reshape(x.left.shape), bottom.reshape(x.top.shape)


def _body(px: int, py: int, gates: Any, q: Any, k: Any, v: Any, left: Any, top: Any, *refs: Any) -> None:
    out, right, bottom, W = refs
    j, n = pl.program_id(2), px * py

    @pl.when((pl.program_id(1) == 0) & (j == 0))
    def _() -> None:
        right[...] = left[...]

    @pl.when(j == 0)
    def _() -> None:
        bottom[...] = top[...]

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


def walk(gates: Any, W: Any, px: int, py: int) -> None:
    """The coefficients of a tile into W, see `core.coefficients`; gates [9, n] in SMEM.

    Rows n to n + py hold the edges between two columns of nodes until they hold those on the right.
    """
    n, size = px * py, W.shape[0]

    def basis(i: Any) -> Array:
        return (lax.broadcasted_iota(jnp.int32, (1, size), 1) == i).astype(jnp.float32)

    def enter(y: Any, _: None) -> None:
        W[pl.ds(n + y, 1), :] = basis(n + y)

    lax.fori_loop(0, py, enter, None)

    def one(i: Any, up: Array) -> Array:
        x, y = lax.div(i, py), lax.rem(i, py)
        up = jnp.where(y == 0, basis(n + py + x), up)
        seen, right, down = node(scalars(gates, i), W[pl.ds(n + y, 1), :], up, basis(i))
        W[pl.ds(i, 1), :] = seen
        W[pl.ds(n + y, 1), :] = right
        W[pl.ds(n + py + x, 1), :] = down
        return down

    lax.fori_loop(0, n, one, jnp.zeros((1, size), jnp.float32))


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
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)

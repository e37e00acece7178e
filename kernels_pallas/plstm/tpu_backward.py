"""The way back on a TPU: tiles in the other order, cotangents of the states on their borders in VMEM.

States that enter a tile come from a forward run that saved them. All matmuls of a tile are linear in its coefficients W
(core.py), so a tile first collects dW, the cotangents of W, by matmuls, and then walks its nodes back over rows of dW, as it walked
them forth over rows of W, to the cotangents of its gates.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import pallas_tpu, pl
from kernels_pallas.plstm.core import Gates, Results, adjoint, passed, transposed
from kernels_pallas.plstm.tiles import Tiles
from kernels_pallas.plstm.tpu import VMEM, column_of, dot, forward, gates_spec, scalars, stacked, unit, walk

NUMBER = len(Gates._fields)
ROWS = ((1,), (1,))  # axes of a b^T
COLUMNS = ((0,), (0,))  # axes of a^T b


def backward(x: Tiles, cotangents: Results, interpret: Any = False) -> Tiles:
    """Cotangents of x for those of the results of `forward`, which come in tiles, too."""
    d_out, d_right, d_bottom = cotangents
    *_, lefts, tops = forward(x, save=True, interpret=interpret)
    B, H, nx, ny, n, DK = x.q.shape
    DV, (px, py) = x.v.shape[-1], x.gates.rl.shape[-2:]
    arrays = [a.reshape(B * H, *a.shape[2:]) for a in (x.q, x.k, x.v, d_out.astype(x.v.dtype), d_right, d_bottom)]
    size = n + py + px

    def place(h: Any, i: Any, j: Any) -> tuple[Any, Any, Any]:
        return h, nx - 1 - i, ny - 1 - j

    def block(*shape: int) -> Any:
        return pl.BlockSpec((None, None, None, *shape), lambda h, i, j: (*place(h, i, j), *(0,) * len(shape)))

    column = pl.BlockSpec((None, None, px, DK, DV), lambda h, i, j: (h, nx - 1 - i, 0, 0, 0))
    rows = pl.BlockSpec((None, ny, py, DK, DV), lambda h, i, j: (h, 0, 0, 0, 0))
    gates = stacked(x)
    like = (*arrays[:3], gates, *arrays[4:])
    d_q, d_k, d_v, d_gates, d_left, d_top = pl.pallas_call(
        partial(_body, px, py, ny),
        grid=(B * H, nx, ny),
        in_specs=[
            gates_spec(n, place),
            *(block(n, D) for D in (DK, DK, DV, DV)),
            rows,
            column,
            block(py, DK, DV),
            block(px, DK, DV),
        ],
        out_specs=[*(block(n, D) for D in (DK, DK, DV)), gates_spec(n, place), rows, column],
        out_shape=[jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in like],
        scratch_shapes=[pallas_tpu.VMEM((rows_, size), jnp.float32) for rows_ in (size, size, n, n)],
        compiler_params=pallas_tpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        interpret=interpret,
        name="plstm_grid_backward",
    )(gates, *arrays, lefts, tops)
    gates_back = Gates(*jnp.moveaxis(d_gates.reshape(B, H, nx, ny, NUMBER, px, py), 4, 0))
    d_q, d_k, d_v = (a.reshape(like.shape).astype(like.dtype) for a, like in zip((d_q, d_k, d_v), x[:3], strict=True))
    return Tiles(d_q, d_k, d_v, gates_back, d_left.reshape(x.left.shape), d_top.reshape(x.top.shape))


def _body(
    px: int, py: int, ny: int, gates: Any, q: Any, k: Any, v: Any, o: Any, d_right: Any, d_bottom: Any, *refs: Any
):
    lefts, tops, d_q, d_k, d_v, d_gates, d_left, d_top, W, dW, to_left, to_up = refs
    j, n = ny - 1 - pl.program_id(2), px * py

    @pl.when((pl.program_id(1) == 0) & (j == ny - 1))
    def _() -> None:
        d_left[...] = d_right[...]

    @pl.when(j == ny - 1)
    def _() -> None:
        d_top[...] = d_bottom[...]

    walk(gates, W, px, py, to_left, to_up)
    borders = ((n, py, lefts, d_left.at[j]), (n + py, px, tops, d_top))
    _inside(q, k, v, o, W, dW, (d_q, d_k, d_v))
    for first, count, states, cotangents in borders:
        lax.fori_loop(0, count, partial(_read, q, o, W, dW, states, d_q, first), None)
        lax.fori_loop(0, count, partial(_written, k, v, W, dW, cotangents, d_k, d_v, first), None)
        lax.fori_loop(0, count, partial(_passed, n, dW, cotangents, borders, first), None)
    _pass_back(gates, d_left.at[j], d_top, px, py)
    for first, count, _, cotangents in borders:
        lax.fori_loop(0, count, partial(_reads_back, q, o, W, cotangents, first), None)
    _walk_back(gates, dW, to_left, to_up, d_gates, px, py)


def _inside(q: Any, k: Any, v: Any, o: Any, W: Any, dW: Any, found: Any) -> None:
    """What passes between the nodes of the tile."""
    n, (d_q, d_k, d_v) = q.shape[0], found
    G, scores, weights = W[:n, :n], dot(q[...], k[...], ROWS), dot(o[...], v[...], ROWS)
    dW[...] = jnp.zeros_like(dW)
    dW[:n, :n] = scores * weights
    d_scores = (weights * G).astype(q.dtype)
    d_q[...] = dot(d_scores, k[...])
    d_k[...] = dot(d_scores, q[...], COLUMNS)
    d_v[...] = dot((scores * G).astype(o.dtype), o[...], COLUMNS)


def _read(q: Any, o: Any, W: Any, dW: Any, states: Any, d_q: Any, first: int, b: Any, _: None) -> None:
    """What nodes read of the state that enters at border b."""
    n, size = q.shape[0], W.shape[0]
    state = states[b].astype(q.dtype)
    product = dot(q[...], state) * o[...].astype(jnp.float32)
    dW[:n, :] = dW[:n, :] + product.sum(1, keepdims=True) * unit(size, first + b)
    d_q[...] = d_q[...] + column_of(W[:n, :], first + b, q.shape[1]) * dot(o[...], state, ROWS)


def _written(k: Any, v: Any, W: Any, dW: Any, cotangents: Any, d_k: Any, d_v: Any, first: int, b: Any, _: None) -> None:
    """What nodes write to the state that leaves at border b."""
    n = k.shape[0]
    state, row = cotangents[b].astype(k.dtype), W[pl.ds(first + b, 1), :][:, :n]
    seen = dot(k[...], state)
    dW[pl.ds(first + b, 1), :] = dot(_row_sums(seen * v[...].astype(jnp.float32)), _placed(n, W.shape[0], 0))
    d_v[...] = d_v[...] + _upright(row, v.shape[1]) * seen
    d_k[...] = d_k[...] + _upright(row, k.shape[1]) * dot(v[...], state, ROWS)


def _passed(n: int, dW: Any, cotangents: Any, borders: Any, first: int, b: Any, _: None) -> None:
    """How much of every state that enters leaves at border b."""
    total = dW[pl.ds(first + b, 1), :]
    for place, count, states, _ in borders:
        product = (states[...] * cotangents[b][None]).sum(1)
        total = total + dot(_row_sums(product), _placed(count, dW.shape[0], place))
    dW[pl.ds(first + b, 1), :] = total


def _reads_back(q: Any, o: Any, W: Any, cotangents: Any, first: int, b: Any, _: None) -> None:
    """Cotangent of the state that enters at border b, from what nodes read of it."""
    scaled = q[...].astype(jnp.float32) * column_of(W[: q.shape[0], :], first + b, q.shape[1])
    cotangents[b] = cotangents[b] + dot(scaled.astype(q.dtype), o[...], COLUMNS)


def _pass_back(gates: Any, rights: Any, bottoms: Any, px: int, py: int) -> None:
    """Takes the cotangents of the states that leave back through the tile, as far as nothing is read or written."""

    def one(step: Any, _: None) -> None:
        i = px * py - 1 - step
        x, y = lax.div(i, py), lax.rem(i, py)
        rights[y], bottoms[x] = passed(transposed(scalars(gates, i)), rights[y], bottoms[x])

    lax.fori_loop(0, px * py, one, None)


def _walk_back(gates: Any, dW: Any, to_left: Any, to_up: Any, d_gates: Any, px: int, py: int) -> None:
    """From cotangents of the coefficients to those of the gates; rows n and on of dW hold those of the edges between nodes."""
    n, size = px * py, dW.shape[0]

    def one(step: Any, _: None) -> None:
        i = n - 1 - step
        x, y = lax.div(i, py), lax.rem(i, py)
        right, down = pl.ds(n + y, 1), pl.ds(n + py + x, 1)
        left, up = to_left[pl.ds(i, 1), :], to_up[pl.ds(i, 1), :]
        cotangents = dW[pl.ds(i, 1), :], dW[right, :], dW[down, :]
        found, dW[right, :], dW[down, :], _ = adjoint(scalars(gates, i), left, up, unit(size, i), *cotangents)
        for number, product in enumerate(found):
            d_gates[number, i] = product.sum()

    lax.fori_loop(0, n, one, None)


def _row_sums(x: Array) -> Array:
    """[1, rows], the sums along the rows of x."""
    return dot(jnp.ones((1, x.shape[1]), jnp.float32), x, ROWS)


def _placed(count: int, size: int, first: int) -> Array:
    """[count, size] that puts entry i at first + i."""
    row, column = (lax.broadcasted_iota(jnp.int32, (count, size), axis) for axis in (0, 1))
    return (row + first == column).astype(jnp.float32)


def _upright(row: Array, width: int) -> Array:
    """[n, width], the row [1, n] as every column."""
    return dot(row, jnp.ones((1, width), jnp.float32), COLUMNS)

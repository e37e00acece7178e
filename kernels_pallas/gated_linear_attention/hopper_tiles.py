"""Tiles of 64 tokens on a Hopper GPU: shared memory, masks, and decays that are matmuls.

Every decay of a chunk is exp of a sum of log gates over an interval of tokens, and such sums are a matmul of a 0/1 matrix with
the gates [64,K]. So no two sums are ever subtracted: every exponent is <= 0, and a gate of -1e4 (a reset) makes exactly the
decays zero whose interval holds it. Gates enter as a sum of two bfloat16 numbers (16 bits of mantissa), sums are float32.

At level l = 5, ..., 0 the chunk falls into blocks of 2^l; two neighbours meet at token m:

    decay[t] = exp(g_{m+1} + .. + g_t)  in the later block,   exp(g_{t+1} + .. + g_m)  in the earlier one

A pair of tokens i > j has one level, the highest bit in which they differ; there decay[i] decay[j] is all that passes from j to i.
At level 6 all tokens are later ("to the token from the chunk's start") or all are earlier ("to its end").
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import mosaic_gpu as mgpu
from kernels_pallas.compat import pl

CHUNK = 64
LEVELS = 6
WIDTH = 64  # of a tile of channels
LOG2_E = 1.4426950408889634


def shared(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
    """A swizzled array in shared memory, as TMA and wgmma want it."""
    tiling: Any = mgpu.TilingTransform
    swizzle: Any = mgpu.SwizzleTransform
    lanes = 128 // jnp.dtype(dtype).itemsize
    return mgpu.SMEM(shape, dtype, transforms=(tiling((8, lanes)), swizzle(128)))


def rows_and_columns() -> tuple[Array, Array]:
    """Token numbers of a [64,64] tile; behind a barrier, or the compiler keeps every mask in registers from the start."""
    axes = [mgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=mgpu.Layout.WGMMA.reduce(1 - i)) for i in (0, 1)]
    row, column = (lax.optimization_barrier(axis) for axis in axes)
    shape = (CHUNK, CHUNK)
    return lax.broadcast_in_dim(row, shape, [0]), lax.broadcast_in_dim(column, shape, [1])


def later(level: Array) -> Array:
    """[64,64], true in the rows that are in the later block of their pair."""
    row, _ = rows_and_columns()
    return (row & _size(level)) != 0


def pairs(level: Array) -> Array:
    """[64,64], true where row > column and the pair has this level: where they differ in this bit and in no higher one."""
    row, column = rows_and_columns()
    size = _size(level)
    return (row ^ column ^ size) < (row & size)


def diagonal() -> Array:
    """[64,64], true on the diagonal."""
    row, column = rows_and_columns()
    return row == column


def between(level: Array) -> Array:
    """[64,64], the gates (columns) whose sum is the exponent of a token (row) at a level below 6."""
    row, column = rows_and_columns()
    size = _size(level)
    return ((row ^ column) < size) & ((column <= row) == ((row & size) != 0))


def _size(level: Array) -> Array:
    """Of a level's blocks."""
    return jnp.int32(1) << level


def upto() -> Array:
    """[64,64], the gates from the chunk's start up to a token."""
    row, column = rows_and_columns()
    return column <= row


def after() -> Array:
    """[64,64], the gates after a token up to the chunk's end."""
    row, column = rows_and_columns()
    return column > row


def matmul(*operands: tuple[Any, Any], onto: Array | None = None, simulated: bool = False) -> Array:
    """The sum of a @ b over pairs (a, b) of tiles in shared memory, in float32; `onto` is what it begins with.

    The simulator knows no accumulator that begins with a value; `simulated` adds it at the end instead.
    """
    (a, b), *_ = operands
    first = onto is not None and not simulated

    def body(total: Any) -> Array:
        if first:
            total[...] = onto
        for left, right in operands:
            mgpu.wgmma(total, left, right)
        return total[...] if first or onto is None else total[...] + onto

    return pl.run_scoped(body, mgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def put(tile: Any, value: Array) -> None:
    """Writes a value for wgmma or TMA to read."""
    tile[...] = value.astype(tile.dtype)
    mgpu.commit_smem()


def split(value: Array, high: Any, low: Any) -> None:
    """Writes float32 as a sum of two bfloat16 tiles."""
    top = value.astype(jnp.bfloat16)
    high[...] = top
    low[...] = (value - top.astype(jnp.float32)).astype(jnp.bfloat16)
    mgpu.commit_smem()


def summed(where: Array, marks: Any, high: Any, low: Any) -> Array:
    """[64,64] @ [64,D]: for every row, the sum over the tokens (columns) where it is true."""
    put(marks, jnp.where(where, 1.0, 0.0))
    return matmul((marks, high), (marks, low))


def split_gates(log_gates: Array, high: Any, low: Any) -> None:
    """Writes log gates as logarithms to base 2, for `decay`."""
    split(log_gates * LOG2_E, high, low)


def decay(where: Array, marks: Any, high: Any, low: Any) -> Array:
    """[64,D]: for every row, the product of the gates of the tokens (columns) where it is true."""
    return jnp.exp2(summed(where, marks, high, low))


def hidden(*buffers: tuple[Any, int]) -> list:
    """Tiles of buffers (each with its number of tiles) at places that the compiler does not know: else it keeps the addresses of
    all of them in registers through the loop over the levels."""
    first = lax.optimization_barrier(jnp.int32(0))
    return [buffer.at[first + i] for buffer, count in buffers for i in range(count)]


def tile_of(ref: Any) -> Array:
    """A tile of shared memory in registers, as wgmma lays its results out."""
    return mgpu.load(ref, layout=mgpu.Layout.WGMMA)


def wide(ref: Any) -> Array:
    """A bfloat16 tile in registers, as float32."""
    return tile_of(ref).astype(jnp.float32)


def zeros(*shape: int) -> Array:
    """float32 zeros in registers, laid out as wgmma's results."""
    return mgpu.layout_cast(jnp.zeros(shape, jnp.float32), mgpu.Layout.WGMMA)


def over(count: int, body: Callable[[Array, Any], Any], init: Any) -> Any:
    """A loop that stays a loop."""
    return lax.fori_loop(jnp.int32(0), jnp.int32(count), body, init)


def part(index: Any, size: int) -> Any:
    """The index-th slice of this size."""
    return pl.ds(index * size, size)


def group_of(head: Array, heads: int, groups: int) -> Array:
    """The group of keys, values and gates that a head reads."""
    return head if heads == groups else lax.div(head, jnp.int32(heads // groups))


def struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An output of a kernel."""
    return jax.ShapeDtypeStruct(shape, dtype)

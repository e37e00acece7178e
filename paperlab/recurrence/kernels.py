"""The seam to `kernels_pallas`: linear recurrences of any layout as the [B, T, D] that its kernels take.

Axes before time become B, axes after it D, by reshaping alone; only where D would not fill a row of threads the time axis is moved
to the front, and everything else becomes D. Segments are zeros in the coefficient where one starts.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NoReturn

import jax.numpy as jnp
from jax import Array

from kernels_pallas import block2_scan, complex_scan, linear_scan, plstm_grid
from paperlab.recurrence import affine
from paperlab.recurrence.grid_blocks import Edges, Gates, sizes

IMPL = "pallas"  # what impl="pallas" means in kernels_pallas; tests set another one, which runs on a CPU
IMPLEMENTATIONS = ("pallas", "interpret")
NARROW = 32  # channels

Arrays = tuple[Array, ...]
Kernel = Callable[[Arrays, Arrays, Arrays | None, bool], tuple[Arrays, Arrays]]


def pallas(name: str) -> NoReturn:
    """Raises ValueError: no kernel of that name is there."""
    raise ValueError(f"impl='pallas': kernels_pallas has no kernel for {name}; use impl='auto'")


def linear(a: Any, b: Any, h0: Any, *, time: int, reverse: bool, starts: Array | None, impl: str) -> tuple[Any, Any]:
    """`linear_scan` on arrays, `complex_scan` on pairs of them, with the time axis at `time`.

    Args:
      starts: where a segment starts, with one axis for every axis of b, of size 1 where all share it.
      impl: "pallas", or "interpret" for the same kernels run by an interpreter.

    Raises:
      ValueError: this device has no kernel, or the kernel refuses; with the reason.
    """
    if isinstance(b, tuple):
        return _run(partial(_complex, _meant(impl)), a, b, h0, time, 0, reverse, starts)
    real = partial(_real, _meant(impl))
    (h,), (last,) = _run(real, (a,), (b,), None if h0 is None else (h0,), time, 0, reverse, starts)
    return h, last


def blocks(
    A: Array, b: Array, h0: Array | None, *, time: int, reverse: bool, starts: Array | None, impl: str
) -> tuple[Array, Array]:
    """`block_scan` for blocks of two variables: A [..., T, ..., 2, 2, n], b [..., T, ..., 2, n]. As `linear`."""
    A = A.reshape((1,) * (b.ndim + 1 - A.ndim) + A.shape)
    A = jnp.moveaxis(A, (-3, -2), (time + 1, time + 2))
    state = None if h0 is None else (jnp.moveaxis(h0, -2, time),)
    if starts is not None:  # no axis for the variables yet
        starts = jnp.expand_dims(starts, (time + 1, time + 2))
        starts = starts.reshape(*starts.shape, *(1,) * (A.ndim - starts.ndim))
    block2 = partial(_block2, _meant(impl))
    (h,), (last,) = _run(block2, (A,), (jnp.moveaxis(b, -2, time + 1),), state, time, 1, reverse, starts)
    return jnp.moveaxis(h, time + 1, -2), jnp.moveaxis(last, time, -2)


def grid(
    q: Array, k: Array, v: Array, gates: Gates, direct: Array | None, entering: Edges | None, scale: float | None
) -> tuple[Array, Edges]:
    """`grid_memory`, all axes before the grid as heads.

    Raises:
      ValueError: as `linear`; or a state of more than one column (JT, JO, JQ, JK, JV above 1).
    """
    if {*sizes(gates), gates.rl.shape[-1]} != {1}:
        pallas(f"grid_memory with JT = {gates.rl.shape[-1]} and (JO, JQ, JK, JV) = {sizes(gates)}, only with ones")
    lead = jnp.broadcast_shapes(*(x.shape[:-4] for x in (q, k, v, gates.rl)))
    X, Y = q.shape[-4:-2]

    def nodes(x: Array | None, axes: int, *width: int) -> Array | None:
        """[..., X, Y, J ..., D, J ...] -> [1, heads, X, Y, D], or without D."""
        if x is None:
            return None
        x = x.reshape(*x.shape[: x.ndim - axes], X, Y, *width)
        return jnp.broadcast_to(x, (*lead, X, Y, *width)).reshape(1, -1, X, Y, *width)

    def border(x: Array) -> Array:
        return jnp.broadcast_to(x[..., 0], (*lead, *x.shape[-4:-1])).reshape(1, -1, *x.shape[-4:-1])

    DK, DV = q.shape[-2], v.shape[-2]
    arrays = [nodes(q, 4, DK), nodes(k, 4, DK), nodes(v, 4, DV)]
    arrays += [nodes(g, axes) for g, axes in zip(gates, GATE_AXES, strict=True)]
    states = [None, None] if entering is None else [border(x) for x in entering]
    out, right, down = plstm_grid(*arrays, nodes(direct, 6), *states, scale=scale, impl=IMPL)  # type: ignore[arg-type, misc]
    out = out.reshape(*lead, X, Y, DV, 1).astype(v.dtype)
    return out, Edges(*(x.reshape(*lead, *x.shape[2:], 1) for x in (right, down)))


GATE_AXES = (5, 5, 4, 4, 4, 4, 5, 5)  # axes of a node's gate with those of the grid: sources, transitions, marks


def _run(
    kernel: Kernel, a: Arrays, b: Arrays, h0: Arrays | None, time: int, own: int, reverse: bool, starts: Array | None
) -> tuple[Arrays, Arrays]:
    """own: axes of one state right after time; a coefficient has twice as many there."""
    shape = b[0].shape
    a = tuple(x.reshape((1,) * (len(shape) + own - x.ndim) + x.shape) for x in a)
    if starts is not None:
        a = affine.reset(a, starts)
    if time and prod(shape[time + 1 + own :]) < NARROW:
        front = tuple(range(own + 1))
        b = tuple(jnp.moveaxis(x, [time + i for i in front], front) for x in b)
        a = tuple(jnp.moveaxis(x, range(time, time + 1 + 2 * own), range(1 + 2 * own)) for x in a)
        h0 = None if h0 is None else tuple(jnp.moveaxis(x, [time + i for i in range(own)], range(own)) for x in h0)
        h, last = _run(kernel, a, b, h0, 0, own, reverse, None)
        h = tuple(jnp.moveaxis(x, front, [time + i for i in front]) for x in h)
        return h, tuple(jnp.moveaxis(x, range(own), [time + i for i in range(own)]) for x in last)
    B, inner = prod(shape[:time]), shape[time + 1 : time + 1 + own]
    states = None if h0 is None else tuple(x.reshape(B, *inner, -1) for x in h0)
    coefficients = tuple(_coefficient(x, shape, time, own) for x in a)
    h, last = kernel(coefficients, tuple(x.reshape(B, shape[time], *inner, -1) for x in b), states, reverse)
    rest = shape[:time] + shape[time + 1 :]
    return tuple(x.reshape(shape) for x in h), tuple(x.reshape(rest) for x in last)


def _coefficient(a: Array, shape: tuple[int, ...], time: int, own: int) -> Array:
    """[B, T, .., D]; the same at every step [B, .., D], for every sequence as well [.., D]."""
    lead, inner, trail = shape[:time], shape[time + 1 : time + 1 + own] * 2, shape[time + 1 + own :]
    if a.shape[time] != 1:
        a = jnp.broadcast_to(a, (*lead, shape[time], *inner, *trail))
        return a.reshape(prod(lead), shape[time], *inner, prod(trail))
    if prod(a.shape[:time]) == 1:
        return jnp.broadcast_to(a.reshape(a.shape[time + 1 :]), (*inner, *trail)).reshape(*inner, prod(trail))
    a = jnp.broadcast_to(a.squeeze(time), (*lead, *inner, *trail))
    return a.reshape(prod(lead), *inner, prod(trail))


def _meant(impl: str) -> str:
    return IMPL if impl == "pallas" else impl


def _real(impl: str, a: Arrays, b: Arrays, h0: Arrays | None, reverse: bool) -> tuple[Arrays, Arrays]:
    h, last = linear_scan(a[0], b[0], h0[0] if h0 else None, reverse=reverse, impl=impl)
    return (h,), (last,)


def _complex(impl: str, a: Arrays, b: Arrays, h0: Arrays | None, reverse: bool) -> tuple[Arrays, Arrays]:
    return complex_scan(*a, *b, *(h0 or (None, None)), reverse=reverse, impl=impl)


def _block2(impl: str, a: Arrays, b: Arrays, h0: Arrays | None, reverse: bool) -> tuple[Arrays, Arrays]:
    h, last = block2_scan(a[0], b[0], h0[0] if h0 else None, reverse=reverse, impl=impl)
    return (h,), (last,)

"""First-order linear recurrences over time, channel by channel: the diagonal state-space model, the gated average.

    h_t = a_t * h_{t-1} + b_t,    h_{-1} = h0        `linear_scan`: real;  `complex_scan`: complex, as two real planes

    impl          steps in time   work        memory beside a, b, h
    sequential    T               T           1, after copies that bring the time axis to the front
    in_place      T               T           1; arrays are read and written where they lie, the gradient is one pass
    associative   2 log2 T        about 3 T   T
    chunked       T/C             about 4 T   T
    pallas        T               T           1, in a kernel of a TPU or a Hopper GPU (kernels_pallas)

Source: Martin and Cundy 2018 (arXiv 1709.04057), section 2; for the complex one Smith et al. 2023
(arXiv 2208.04933), appendix H.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from paperlab.recurrence import affine, kernels
from paperlab.recurrence.choice import fastest
from paperlab.recurrence.orders import scan

IMPLEMENTATIONS = ("auto", "sequential", "in_place", "associative", "chunked", "pallas", "interpret")

Planes = tuple[Array, Array]

REAL = affine.Structure(
    act=lambda a, h: a * h,
    compose=lambda later, earlier: later * earlier,
    transpose=lambda a: a,
    outer=lambda l, h: l * h,
)


def _times(x: Planes, y: Planes) -> Planes:
    (a, b), (c, d) = x, y
    return a * c - b * d, a * d + b * c


def _conjugate(x: Planes) -> Planes:
    return x[0], -x[1]


# In real planes the transpose of "times a" is "times the conjugate of a".
COMPLEX = affine.Structure(
    act=_times, compose=_times, transpose=_conjugate, outer=lambda l, h: _times(l, _conjugate(h))
)


def linear_scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    axis: int = -2,
    reverse: bool = False,
    segment_ids: Array | None = None,
    impl: str = "auto",
    chunk: int = affine.CHUNK,
) -> tuple[Array, Array]:
    """Runs h_t = a_t h_{t-1} + b_t along `axis`.

    Args:
      a: decay, real, broadcasts against b; of size 1 (or absent) along the time axis it is the same at every step. |a| <= 1 keeps
        h bounded, larger values are allowed.
      b: input, real floating point, e.g. [B, T, D] (or [T, D], [B, H, T, K] ...).
      h0: the state before the first step, shaped like b without its time axis; zeros if omitted.
      axis: the time axis of b.
      reverse: h_t = a_t h_{t+1} + b_t from the last step to the first; h0 is then the state after the last one.
      segment_ids: integers shaped like b without its axes after time, e.g. [B, T]; where the id changes the state is reset to zero
        before the step. h0 belongs to the segment that comes first.
      impl: "auto" (the fastest measured for this backend, length and width), "sequential", "in_place", "associative", "chunked" or
        "pallas".
      chunk: steps of a chunk, for "chunked".

    Returns:
      h, shaped like b in its dtype, and the last state in float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes that do not fit, an empty b, a dtype that is not real, or an unknown `impl`.
    """
    return _run(REAL, a, b, h0, axis, reverse, segment_ids, impl, chunk)


def complex_scan(
    a: Planes,
    b: Planes,
    h0: Planes | None = None,
    *,
    axis: int = -2,
    reverse: bool = False,
    segment_ids: Array | None = None,
    impl: str = "auto",
    chunk: int = affine.CHUNK,
) -> tuple[Planes, Planes]:
    """`linear_scan` on complex numbers as pairs (real part, imaginary part) of real arrays.

    Gradients are those of the planes: for a real loss L, (dL/d re, dL/d im).
    """
    planes = [("a", a), ("b", b), *([] if h0 is None else [("h0", h0)])]
    for name, pair in planes:
        if not isinstance(pair, tuple) or len(pair) != 2 or jnp.shape(pair[0]) != jnp.shape(pair[1]):
            raise ValueError(f"{name} must be a pair (real part, imaginary part) of arrays of one shape")
    return _run(COMPLEX, a, b, h0, axis, reverse, segment_ids, impl, chunk)


def _run(
    structure: affine.Structure,
    a: Any,
    b: Any,
    h0: Any,
    axis: int,
    reverse: bool,
    segment_ids: Array | None,
    impl: str,
    chunk: int,
) -> tuple[Any, Any]:
    """Either scan, on arrays or on pairs of them."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    _check(a, b, h0, axis, chunk)
    one = jax.tree.leaves(b)[0]
    shape, dtype = one.shape, one.dtype
    time = axis % len(shape)
    op = "linear" if structure is REAL else "complex"
    if impl == "auto":

        def run(impl: str, arrays: tuple, ids: Array | None) -> tuple[Any, Any]:
            a, b, h0 = arrays
            return _run(structure, a, b, h0, axis, reverse, ids, impl, chunk)

        return fastest(op, shape[time], one.size // shape[time], run, (a, b, h0), segment_ids)
    starts = None if segment_ids is None else _starts(segment_ids, shape, time, reverse)
    if impl in kernels.IMPLEMENTATIONS:
        return kernels.linear(a, b, h0, time=time, reverse=reverse, starts=starts, impl=impl)
    wide = jnp.promote_types(dtype, jnp.float32)
    rest = shape[:time] + shape[time + 1 :]
    A = jax.tree.map(lambda x: x.astype(wide).reshape((1,) * (len(shape) - x.ndim) + x.shape), a)
    inputs = jax.tree.map(lambda x: x.astype(wide), b)
    state = (
        jax.tree.map(lambda x: jnp.zeros(rest, wide), b) if h0 is None else jax.tree.map(lambda x: x.astype(wide), h0)
    )
    if starts is not None:
        A = affine.reset(A, starts)
    h, last = scan(structure, A, inputs, state, axis=time, impl=impl, reverse=reverse, chunk=chunk)
    return jax.tree.map(lambda x: x.astype(dtype), h), last


def _starts(segment_ids: Array, shape: tuple[int, ...], time: int, reverse: bool) -> Array:
    """With one axis for every axis of b."""
    if segment_ids.ndim > len(shape) or segment_ids.shape[time : time + 1] != (shape[time],):
        raise ValueError(f"segment_ids must be shaped like b {shape} without its last axes, got {segment_ids.shape}")
    starts = affine.starts(segment_ids, axis=time, reverse=reverse)
    return starts.reshape(*starts.shape, *(1,) * (len(shape) - starts.ndim))


def _check(a: Any, b: Any, h0: Any, axis: int, chunk: int) -> None:
    shape = jax.tree.leaves(b)[0].shape
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis={axis}: b has {len(shape)} axes, {shape}")
    for name, tree in (("a", a), ("b", b), ("h0", h0)):
        for x in jax.tree.leaves(tree):
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"{name} must be real floating point, got {x.dtype}; complex_scan takes two real planes"
                )
    if 0 in shape:
        raise ValueError(f"b must not be empty, got {shape}")
    decay = jax.tree.leaves(a)[0].shape
    try:
        fits = jnp.broadcast_shapes(decay, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"a {decay} does not broadcast to b {shape}")
    time = axis % len(shape)
    rest = shape[:time] + shape[time + 1 :]
    for x in jax.tree.leaves(h0):
        if x.shape != rest:
            raise ValueError(f"h0 must have b's shape without its time axis, {rest}, got {x.shape}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")

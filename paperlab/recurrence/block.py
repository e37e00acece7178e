"""Linear recurrences whose coefficient is a matrix: the Jacobians of nonlinear cells, coupled channels, dense state spaces.

    h_t = A_t h_{t-1} + b_t

    structure   A [..., T, ...]   b, h [..., T, ...]   what A_t is                                         one composition
    blocks      K, K, n           K, n                 n blocks of K x K, i.e. K x K diagonals of size n   n K^3
    heads       H, d, d           H, d                 one dense matrix a head                             H d^3
    dense       d, d              d                    one dense matrix                                    d^3
    diagonal    n                 n                    a number a channel: `linear_scan`                   n

Blocks of up to four variables are kept as K^2 separate planes (a structure of arrays), so that every operation is elementwise over
n; larger ones become matrices. Products are taken in the highest matmul precision: the states of a recurrence add up rounding.

Source: ParaRNN (arXiv 2510.21450), section 2 and appendix D.2 (block-diagonal reduction); DEER (arXiv 2309.12252), section 3.1
(dense).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from paperlab.recurrence import affine, kernels
from paperlab.recurrence.affine import Tree
from paperlab.recurrence.choice import fastest
from paperlab.recurrence.linear import IMPLEMENTATIONS, linear_scan
from paperlab.recurrence.orders import scan

STRUCTURES = ("blocks", "heads", "dense", "diagonal")
MOST_PLANES = 4  # K^3 products are written out below; beyond this a matmul is the shorter program


def _planes_act(A: Tree, h: Tree) -> Tree:
    return tuple(_sum(a * x for a, x in zip(row, h, strict=True)) for row in A)


def _planes_compose(later: Tree, earlier: Tree) -> Tree:
    columns = tuple(zip(*earlier, strict=True))
    return tuple(tuple(_sum(a * b for a, b in zip(row, column, strict=True)) for column in columns) for row in later)


def _sum(terms) -> Array:
    first, *rest = terms
    for term in rest:
        first = first + term
    return first


# K x K tuples of arrays acting on K-tuples of arrays.
PLANES = affine.Structure(
    act=_planes_act,
    compose=_planes_compose,
    transpose=lambda A: tuple(zip(*A, strict=True)),
    outer=lambda l, h: tuple(tuple(l_i * h_j for h_j in h) for l_i in l),
)


def _blocks_act(A: Array, h: Array) -> Array:
    """Written out for few variables: a reduction is given to several threads, which wait for each other at every step."""
    if h.shape[-2] > MOST_PLANES:
        return (A * h[..., None, :, :]).sum(-2)
    return _sum(A[..., :, j, :] * h[..., None, j, :] for j in range(h.shape[-2]))


# Arrays [..., K, K, n] acting on arrays [..., K, n].
BLOCKS = affine.Structure(
    act=_blocks_act,
    compose=lambda later, earlier: (later[..., None, :] * earlier[..., None, :, :, :]).sum(-3),
    transpose=lambda A: A.swapaxes(-2, -3),
    outer=lambda l, h: l[..., :, None, :] * h[..., None, :, :],
)

# Arrays [..., d, d] acting on arrays [..., d].
MATRICES = affine.Structure(
    act=lambda A, h: jnp.einsum("...ij,...j->...i", A, h, precision=lax.Precision.HIGHEST),
    compose=lambda later, earlier: jnp.matmul(later, earlier, precision=lax.Precision.HIGHEST),
    transpose=lambda A: A.swapaxes(-1, -2),
    outer=lambda l, h: l[..., :, None] * h[..., None, :],
)


class Layout(NamedTuple):
    """How arrays of a structure become trees of the engine (`affine`) and back."""

    engine: affine.Structure
    coefficient: Callable[[Array], Tree]
    vector: Callable[[Array], Tree]
    array: Callable[[Tree], Array]


AS_PLANES = Layout(
    PLANES,
    lambda A: tuple(tuple(A[..., i, j, :] for j in range(A.shape[-2])) for i in range(A.shape[-3])),
    lambda b: tuple(b[..., i, :] for i in range(b.shape[-2])),
    lambda h: jnp.stack(h, axis=-2),
)
AS_MATRICES = Layout(MATRICES, lambda A: A, lambda b: b, lambda h: h)
AS_BLOCKS = Layout(BLOCKS, lambda A: A, lambda b: b, lambda h: h)
# Blocks of many variables: one matrix a channel.
BLOCKS_AS_MATRICES = Layout(
    MATRICES, lambda A: jnp.moveaxis(A, -1, -3), lambda b: b.swapaxes(-1, -2), lambda h: h.swapaxes(-1, -2)
)


def state_axes(structure: str) -> int:
    """How many axes one state of this structure has: [K, n], [H, d], [d] or [n]."""
    return 2 if structure in ("blocks", "heads") else 1


def block_scan(
    A: Array,
    b: Array,
    h0: Array | None = None,
    *,
    structure: str = "blocks",
    axis: int | None = None,
    reverse: bool = False,
    segment_ids: Array | None = None,
    impl: str = "auto",
    chunk: int = affine.CHUNK,
) -> tuple[Array, Array]:
    """Runs h_t = A_t h_{t-1} + b_t along `axis`.

    Args:
      A: coefficients, real: "blocks" [..., T, K, K, n] (row, then column), "heads" [..., T, H, d, d], "dense" [..., T, d, d],
        "diagonal" [..., T, n]. Other axes broadcast against b's; of size 1 along time, A is the same at every step.
      b: inputs, real floating point: "blocks" [..., T, K, n], "heads" [..., T, H, d], "dense" [..., T, d], "diagonal" [..., T, n].
      h0: the state before the first step, shaped like b without its time axis; zeros if omitted.
      structure: "blocks", "heads", "dense" or "diagonal".
      axis: the time axis of b; if omitted the one just before the axes of a state.
      reverse: h_t = A_t h_{t+1} + b_t from the last step to the first; h0 is then the state after the last one.
      segment_ids: integers [..., T] in the leading axes of b; where the id changes the state is reset to zero before the step. h0
        belongs to the segment that comes first.
      impl: "auto" (the fastest measured for this backend, length and width), "sequential" (T steps, work T applications, memory 1),
        "in_place" (the same, without copies that bring the time axis to the front),
        "associative" (2 log2 T levels, work 2 T compositions, memory of T coefficients), "chunked" (T/C steps, the same work and
        memory) or "pallas" (a kernel, for blocks of two variables). Gradients cost one more run, in reverse, and keep A and h.
      chunk: steps of a chunk, for "chunked".

    Returns:
      h, shaped like b in its dtype, and the last state in float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes that do not fit, an empty b, a dtype that is not real, an unknown `structure` or `impl`.
    """
    if structure not in STRUCTURES:
        raise ValueError(f"structure={structure!r}: choose one of {', '.join(STRUCTURES)}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    if structure == "diagonal":
        time = -2 if axis is None else axis
        return linear_scan(A, b, h0, axis=time, reverse=reverse, segment_ids=segment_ids, impl=impl, chunk=chunk)
    time = _check(A, b, h0, structure, axis, segment_ids, chunk)
    if impl == "auto":

        def run(impl: str, arrays: tuple, ids: Array | None) -> tuple[Array, Array]:
            how: dict[str, Any] = {"structure": structure, "axis": time, "reverse": reverse, "segment_ids": ids}
            return block_scan(*arrays, impl=impl, chunk=chunk, **how)

        op, T = f"block/{structure}", b.shape[time]
        return fastest(op, T, b.size // T, run, (A, b, h0), segment_ids)
    starts = None if segment_ids is None else _starts(segment_ids, b.ndim - state_axes(structure), time, reverse)
    if impl in kernels.IMPLEMENTATIONS:
        if structure != "blocks" or b.shape[-2] != 2:
            kernels.pallas(f"block_scan with structure={structure!r} and b {b.shape}, only for blocks of two variables")
        return kernels.blocks(A, b, h0, time=time, reverse=reverse, starts=starts, impl=impl)
    wide = jnp.promote_types(b.dtype, jnp.float32)
    layout = _layout(structure, b.shape[-2], impl)
    tree = layout.coefficient(A.astype(wide).reshape((1,) * (b.ndim + 1 - A.ndim) + A.shape))
    if starts is not None:
        tree = affine.reset(tree, starts)
    inputs = layout.vector(b.astype(wide))
    before = layout.vector(jnp.zeros(b.shape[:time] + b.shape[time + 1 :], wide) if h0 is None else h0.astype(wide))
    h, last = scan(layout.engine, tree, inputs, before, axis=time, impl=impl, reverse=reverse, chunk=chunk)
    return layout.array(h).astype(b.dtype), layout.array(last)


def _layout(structure: str, K: int, impl: str) -> Layout:
    """Planes let a tree of compositions stay elementwise; a walk in place reads whole blocks."""
    if structure != "blocks":
        return AS_MATRICES
    if impl == "in_place":
        return AS_BLOCKS
    return AS_PLANES if K <= MOST_PLANES else BLOCKS_AS_MATRICES


def _starts(segment_ids: Array, ndim: int, time: int, reverse: bool) -> Array:
    """With one axis for every axis of b that is not one of a state."""
    starts = affine.starts(segment_ids, axis=time, reverse=reverse)
    return starts.reshape(*starts.shape, *(1,) * (ndim - starts.ndim))


def _check(
    A: Array, b: Array, h0: Array | None, structure: str, axis: int | None, segment_ids: Array | None, chunk: int
) -> int:
    """The time axis of b, counted from the front, if everything fits."""
    own = state_axes(structure)
    for name, x in (("A", A), ("b", b), *((("h0", h0),) if h0 is not None else ())):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be real floating point, got {x.dtype}")
    if b.ndim <= own:
        raise ValueError(f"b {b.shape} needs a time axis before the {own} of a state of structure={structure!r}")
    axis = -1 - own if axis is None else axis
    time = axis + b.ndim if axis < 0 else axis
    if not 0 <= time < b.ndim - own:
        raise ValueError(f"axis={axis}: no axis of b {b.shape} before those of a state")
    if 0 in b.shape:
        raise ValueError(f"b must not be empty, got {b.shape}")
    rest = b.shape[:time] + b.shape[time + 1 :]
    if h0 is not None and h0.shape != rest:
        raise ValueError(f"h0 must have b's shape without its time axis, {rest}, got {h0.shape}")
    square = (*b.shape[:-1], b.shape[-2], b.shape[-1]) if structure == "blocks" else (*b.shape, b.shape[-1])
    exact = slice(-3, None) if structure == "blocks" else slice(-2, None)
    if A.shape[exact] != square[exact] or not _fits(A.shape, square):
        raise ValueError(
            f"A {A.shape} does not broadcast to {square}, what structure={structure!r} and b {b.shape} ask"
        )
    if segment_ids is not None and not (
        segment_ids.ndim > time
        and segment_ids.shape[time] == b.shape[time]
        and _fits(segment_ids.shape, b.shape[: segment_ids.ndim])
        and segment_ids.ndim <= b.ndim - own
    ):
        raise ValueError(f"segment_ids must be shaped like b {b.shape} without its last axes, got {segment_ids.shape}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")
    return time


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to `target`."""
    if len(shape) > len(target):
        return False
    return all(n in (1, m) for n, m in zip(shape[::-1], target[::-1], strict=False))

"""The scans on a Hopper GPU, forward and backward.

Where B and D alone leave multiprocessors idle, time is cut into segments that run at once, in three passes: what every segment does
to a state (its coefficient over the whole way, and the state it ends with from zero), the states that enter the segments (a short
scan of the same kind), and the scan itself from those. That reads a and b twice: 5/3 of the bytes for numbers.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.scan.algebra import Algebra, Planes, add
from kernels_pallas.scan.config import Config
from kernels_pallas.scan.groups import Group, invariant, sizes, split
from kernels_pallas.scan.hopper_tiles import Plan, Plane, call, constant, here, plan_for, registers, walk

ALIGNED = 8  # channels: rows of arrays must begin at multiples of 16 bytes


def forward(
    algebra: Algebra, a: Group, b: Group, h0: Planes, *, reverse: bool, config: Config, interpret: Any = None
) -> tuple[Group, Planes]:
    """As `reference.forward`."""
    D = sizes(b)[2]
    a, b, h0 = (_padded(x, _filled(D)) for x in (a, b, h0))
    tiled = [*([] if invariant(a) else _dtypes(a)), *_dtypes(b)]
    made = _dtypes(b)
    plan = plan_for(algebra, sizes(b), reverse, config, _widths(tiled, made))
    enters = _entering(plan, a, b, h0, transpose=False, interpret=interpret)
    ends = [jax.ShapeDtypeStruct((plan.B, plan.segments, plan.lanes), jnp.float32)] * algebra.states
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in b]
    body = partial(_forward, plan, a, b)
    out = call(plan, body, [*_laid(plan, a), *b, *enters], [*shapes, *ends], tiled, made, interpret)
    h, last = out[: len(b)], out[len(b) :]
    return tuple(x[..., :D] for x in h), tuple(x[:, 0 if reverse else -1, :D] for x in last)


def backward(
    algebra: Algebra,
    a: Group,
    h: Group,
    h0: Planes,
    g: Group,
    g_last: Planes,
    *,
    reverse: bool,
    config: Config,
    interpret: Any = None,
) -> tuple[Group, Group, Planes]:
    """As `chunked.backward`."""
    D, fixed, n, m = sizes(h)[2], invariant(a), algebra.states, algebra.coefficients
    a, h, h0, g, g_last = (_padded(x, _filled(D)) for x in (a, h, h0, g, g_last))
    tiled = [*([] if fixed else _dtypes(a)), *_dtypes(h), *_dtypes(g)]
    made = [*([] if fixed else _dtypes(a)), *_dtypes(g)]
    plan = plan_for(algebra, sizes(h), not reverse, config, _widths(tiled, made))
    enters = _entering(plan, a, g, g_last, transpose=True, interpret=interpret)
    row = jax.ShapeDtypeStruct((plan.B, plan.segments, plan.lanes), jnp.float32)
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*([] if fixed else a), *g)]
    results = [*([row] * m if fixed else []), *like, *[row] * n]
    body = partial(_backward, plan, a, h, g)
    start = _laid(plan, h0)
    out = call(plan, body, [*_laid(plan, a), *h, *g, *start, *enters], results, tiled, made, interpret)
    da, db, dh0 = split(out, len(a), len(g), n)
    dh0 = tuple(x[:, -1 if reverse else 0, :D] for x in dh0)
    if fixed:
        da = tuple(x.sum(1 if y.shape[0] > 1 else (0, 1))[..., :D].reshape(-1, D) for x, y in zip(da, a, strict=True))
    return tuple(x[..., :D] for x in da), tuple(x[..., :D] for x in db), dh0


def _entering(plan: Plan, a: Group, b: Group, h0: Planes, *, transpose: bool, interpret: Any) -> list[Array]:
    """The states that enter each segment, [B, segments, lanes]."""
    if plan.segments == 1:
        return [x[:, None] for x in _laid(plan, h0)]
    algebra = plan.algebra
    row = jax.ShapeDtypeStruct((plan.B, plan.segments, plan.lanes), jnp.float32)
    tiled = [*([] if invariant(a) else _dtypes(a)), *_dtypes(b)]
    body = partial(_summary, plan, transpose, a, b)
    count = algebra.coefficients + algebra.states
    out = call(plan, body, [*_laid(plan, a), *b], [row] * count, tiled, [], interpret)
    through, local = tuple(out[: algebra.coefficients]), tuple(out[algebra.coefficients :])
    start = tuple(_laid(plan, h0))
    flat = algebra._replace(name=f"{algebra.name}_segments")
    h, _ = forward(flat, through, local, start, reverse=plan.reverse, config=Config(segments=1), interpret=interpret)
    if plan.reverse:
        return [jnp.concatenate([x[:, 1:], y[:, None]], axis=1) for x, y in zip(h, start, strict=True)]
    return [jnp.concatenate([y[:, None], x[:, :-1]], axis=1) for x, y in zip(h, start, strict=True)]


def _forward(plan: Plan, a: Group, b: Group, *refs: Any) -> None:
    algebra, m, n, fixed = plan.algebra, plan.algebra.coefficients, plan.algebra.states, invariant(a)
    k = 0 if fixed else m
    a_, b_, h0_, h_, last_, tiles, made, (ready,) = split(refs, len(a), len(b), n, len(b), n, k + n, n, 1)
    place = here(plan)
    shared = _shared(plan, a, a_, place)

    def row(step: Any, values: Planes, h: Planes) -> tuple[Planes, Planes]:
        h = add(algebra.act(shared or values[:k], h), values[k:])
        return h, h

    inputs = [*([] if fixed else _planes(a_, m)), *_planes(b_, n)]
    start = tuple(registers(plan, x, place.batch, place.segment, place.columns) for x in h0_)
    end = walk(plan, place, _paired(inputs, tiles), _paired(_planes(h_, n), made), ready, row, start)
    _store(place, last_, end)


def _backward(plan: Plan, a: Group, h: Group, g: Group, *refs: Any) -> None:
    algebra, m, n, fixed = plan.algebra, plan.algebra.coefficients, plan.algebra.states, invariant(a)
    k = 0 if fixed else m
    counts = (len(a), len(h), len(g), n, n, len(a), len(g), n, k + 2 * n, k + n, 1)
    a_, h_, g_, h0_, c_, da_, db_, dh0_, tiles, made, (ready,) = split(refs, *counts)
    place = here(plan)
    shared = _shared(plan, a, a_, place)
    start = tuple(registers(plan, x, place.batch, place.columns) for x in h0_)
    border = 0 if plan.reverse else plan.T - 1

    def row(step: Any, values: Planes, carry: tuple) -> tuple[Planes, tuple]:
        c, total = carry
        coefficient, before, inputs = shared or values[:k], values[k : k + n], values[k + n :]
        first = jnp.broadcast_to(step == border, (plan.channels,))
        before = tuple(jnp.where(first, x, y) for x, y in zip(start, before, strict=True))
        l = add(inputs, c)
        da = algebra.outer(l, before)
        c = algebra.act(algebra.transpose(coefficient), l)
        return (l, (c, add(total, da))) if fixed else ((*da, *l), (c, ()))

    shift = -1 if plan.reverse else 1
    inputs = [*([] if fixed else _planes(a_, m)), *_planes(h_, n, shift), *_planes(g_, n)]
    outputs = [*([] if fixed else _planes(da_, m)), *_planes(db_, n)]
    zeros = tuple(constant(plan, 0.0) for _ in range(m)) if fixed else ()
    enters = tuple(registers(plan, x, place.batch, place.segment, place.columns) for x in c_)
    c, total = walk(plan, place, _paired(inputs, tiles), _paired(outputs, made), ready, row, (enters, zeros))
    _store(place, dh0_, c)
    if fixed:
        _store(place, da_, total)


def _summary(plan: Plan, transpose: bool, a: Group, b: Group, *refs: Any) -> None:
    """What a segment does to a state: forward from zero, or (transpose) as the backward pass goes."""
    algebra, m, n, fixed = plan.algebra, plan.algebra.coefficients, plan.algebra.states, invariant(a)
    k = 0 if fixed else m
    a_, b_, through_, local_, tiles, (ready,) = split(refs, len(a), len(b), m, n, k + n, 1)
    place = here(plan)
    shared = _shared(plan, a, a_, place)

    def row(step: Any, values: Planes, carry: tuple) -> tuple[Planes, tuple]:
        through, h = carry
        now, inputs = shared or values[:k], values[k:]
        if transpose:
            now = algebra.transpose(now)
            return (), (algebra.compose(now, through), algebra.act(now, add(h, inputs)))
        return (), (algebra.compose(now, through), add(algebra.act(now, h), inputs))

    inputs = [*([] if fixed else _planes(a_, m)), *_planes(b_, n)]
    start = tuple(constant(plan, x) for x in algebra.identity), tuple(constant(plan, 0.0) for _ in range(n))
    through, local = walk(plan, place, _paired(inputs, tiles), [], ready, row, start)
    _store(place, through_, through)
    _store(place, local_, local)


def _shared(plan: Plan, a: Group, refs: tuple, place: Any) -> Planes | None:
    """Coefficients that are the same at every step, in registers."""
    if not invariant(a):
        return None
    batch = place.batch if a[0].shape[0] > 1 else 0
    return tuple(registers(plan, x, batch, place.columns) for x in refs)


def _store(place: Any, refs: tuple, values: Planes) -> None:
    for ref, x in zip(refs, values, strict=True):
        ref[place.batch, place.segment, place.columns] = x


def _planes(refs: tuple, count: int, shift: int = 0) -> list[Plane]:
    if len(refs) == count:
        return [Plane(ref, None, shift) for ref in refs]
    return [Plane(refs[0], p, shift) for p in range(count)]


def _paired(planes: list[Plane], tiles: tuple) -> list[tuple[Plane, Any]]:
    return list(zip(planes, tiles, strict=True))


def _dtypes(group: Group) -> list[Any]:
    """One a plane."""
    return [x.dtype for x in group for _ in range(x.shape[2] if x.ndim == 4 else 1)]


def _widths(tiled: list[Any], made: list[Any]) -> list[int]:
    return [*(x.itemsize for x in tiled), *(-x.itemsize for x in made)]


def _laid(plan: Plan, group: Group) -> list[Array]:
    """Rows [.., D] that all steps share, with whole tiles of channels; arrays with a time axis as they are."""
    return [_pad(x, plan.lanes) if x.ndim == 2 else x for x in group]


def _filled(D: int) -> int:
    return -(-D // ALIGNED) * ALIGNED


def _padded(group: Group, width: int) -> Group:
    return tuple(_pad(x, width) for x in group)


def _pad(x: Array, width: int) -> Array:
    return x if x.shape[-1] == width else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])

"""The scans on a TPU, forward and backward, one program a sequence and block of channels.

The state stays in the block of an output that all tiles of a sequence share. Backward is the same walk the other way: with c what
comes out of the step behind, l_t = g_t + c_t is the cotangent of b_t, l_t h_{t-1}^T that of a_t, and a_t^T l_t goes on.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.compat import pl
from kernels_pallas.scan import core
from kernels_pallas.scan.algebra import Algebra, Planes, add
from kernels_pallas.scan.config import Config
from kernels_pallas.scan.groups import Group, grouped, invariant, planes, split
from kernels_pallas.scan.tpu_tiles import (
    Plan,
    begin,
    call,
    edge,
    groups_in,
    like,
    plan_for,
    read,
    row,
    tile,
    walk,
    write,
)


def forward(
    algebra: Algebra, a: Group, b: Group, h0: Planes, *, reverse: bool, config: Config, interpret: Any = False
) -> tuple[Group, Planes]:
    """As `reference.forward`."""
    n, inputs = algebra.states, planes(b)
    plan = plan_for(algebra, inputs[0].shape, reverse, config, algebra.coefficients + 2 * n)
    start = _rows(h0)
    out = call(
        plan,
        partial(_forward, plan, invariant(a)),
        [*_coefficients(plan, a), *((x, tile(plan)) for x in inputs), *((x, row(plan, plan.B)) for x in start)],
        [*((like(x), tile(plan)) for x in inputs), *((like(x), row(plan, plan.B)) for x in start)],
        interpret,
    )
    return grouped(tuple(out[:n]), b), tuple(x[:, 0] for x in out[n:])


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
    interpret: Any = False,
) -> tuple[Group, Group, Planes]:
    """As `chunked.backward`."""
    m, n, fixed = algebra.coefficients, algebra.states, invariant(a)
    states, cotangents = planes(h), planes(g)
    plan = plan_for(algebra, states[0].shape, not reverse, config, (m if fixed else 2 * m) + 3 * n)
    start, end = _rows(h0), _rows(g_last)
    shared = row(plan, plan.B)
    coefficients = _coefficients(plan, a)
    total = [(jax.ShapeDtypeStruct((plan.B, 1, plan.D), jnp.float32), shared)] * m
    out = call(
        plan,
        partial(_backward, plan, fixed),
        [
            *coefficients,
            *((x, tile(plan)) for x in states),
            *((x, edge(plan)) for x in states),
            *((x, shared) for x in start),
            *((x, tile(plan)) for x in cotangents),
            *((x, shared) for x in end),
        ],
        [
            *(total if fixed else [(like(x), spec) for x, spec in coefficients]),
            *((like(x), tile(plan)) for x in cotangents),
            *((like(x), shared) for x in end),
        ],
        interpret,
    )
    db, dh0 = grouped(tuple(out[m : m + n]), g), tuple(x[:, 0] for x in out[m + n :])
    if not fixed:
        return grouped(tuple(out[:m]), a), db, dh0
    return tuple(x[:, 0] if y.shape[0] > 1 else x.sum(0) for x, y in zip(out[:m], a, strict=True)), db, dh0


def _forward(plan: Plan, fixed: bool, *refs: Any) -> None:
    algebra, reverse, m, n = plan.algebra, plan.reverse, plan.algebra.coefficients, plan.algebra.states
    a, b, h0, h, last = split(refs, m, n, n, n, n)
    begin(last, [x[...] for x in h0])
    through = _Through(plan, a, fixed, transpose=False)

    def group(number: Any, parts: list, carry: Planes) -> Planes:
        through.read(number)
        inputs, found = read(b, number), []
        for part in parts:
            now = plan.masked(part, part.of(inputs), (0.0,) * n)
            found.append(core.states(algebra, through.powers(part), now, carry, reverse))
            carry = core.final(found[-1], reverse)
        write(h, number, parts, found)
        return carry

    _keep(last, walk(plan, group, tuple(x[...] for x in last)))


def _backward(plan: Plan, fixed: bool, *refs: Any) -> None:
    algebra, reverse, m, n = plan.algebra, plan.reverse, plan.algebra.coefficients, plan.algebra.states
    a, h, border, h0, g, g_last, da, db, dh0 = split(refs, m, n, n, n, n, n, m, n, n)
    begin(dh0, [x[...] for x in g_last])
    if fixed:
        begin(da, [jnp.zeros(x.shape, x.dtype) for x in da])
    through = _Through(plan, a, fixed, transpose=True)
    start = tuple(x[...] for x in h0)
    groups = groups_in(plan, plan.order(pl.program_id(2)))
    behind = tuple(
        jnp.where(pl.program_id(2) == plan.tiles - 1, s, x) for s, x in zip(start, read(border, 0), strict=True)
    )

    def group(number: Any, parts: list, carry: tuple) -> tuple:
        """carry: what goes on from l, the states of this group, the sum of da."""
        c, states, total = carry
        through.read(number)
        cotangents = read(g, number)
        onward = number - 1 if reverse else number + 1
        inside = (onward >= 0) & (onward < groups)
        following = read(h, jnp.clip(onward, 0, groups - 1))
        following = tuple(jnp.where(inside, x, y) for x, y in zip(following, behind, strict=True))
        own = [plan.masked(part, part.of(states), start) for part in parts]
        own.append(parts[0].of(following))
        dbs, das = [], []
        for part, now, then in zip(parts, own, own[1:], strict=False):
            inputs = plan.masked(part, part.of(cotangents), (0.0,) * n)
            powers = through.powers(part)
            after = core.states(algebra, powers, algebra.act(powers[0], inputs), c, reverse)
            dbs.append(add(inputs, core.entering(after, c, reverse)))
            das.append(algebra.outer(dbs[-1], core.entering(now, core.final(then, not reverse), not reverse)))
            c = core.final(after, reverse)
        write(db, number, parts, dbs)
        if fixed:
            for part, found in zip(parts, das, strict=True):
                total = add(total, plan.masked(part, found, (0.0,) * m))
        else:
            write(da, number, parts, das)
        return c, following, total

    first = read(h, groups - 1 if reverse else 0)
    zeros = tuple(jnp.zeros((core.ROWS, x.shape[-1]), jnp.float32) for x in da) if fixed else ()
    c, _, total = walk(plan, group, (tuple(x[...] for x in dh0), first, zeros))
    _keep(dh0, c)
    for ref, x in zip(da, total, strict=False):
        ref[...] += x.sum(0, keepdims=True)


class _Through:
    """The coefficients of a group and their products, transposed if so wanted; made once if every step has the same ones."""

    def __init__(self, plan: Plan, refs: Any, fixed: bool, transpose: bool) -> None:
        self.plan, self.refs, self.transpose = plan, refs, transpose
        self.fixed = tuple(jnp.broadcast_to(x[...], (core.ROWS, x.shape[-1])) for x in refs) if fixed else None
        self.ready = self._powers(self.fixed) if self.fixed and not plan.ragged else None

    def read(self, number: Any) -> None:
        """Goes to a group."""
        self.group = None if self.fixed else read(self.refs, number)

    def powers(self, part: Any) -> list[Planes]:
        """As `core.powers`, of a part of the group."""
        if self.ready is not None:
            return self.ready
        a = self.fixed or part.of(self.group)
        return self._powers(self.plan.masked(part, a, self.plan.algebra.identity))

    def _powers(self, a: Planes) -> list[Planes]:
        algebra = self.plan.algebra
        return core.powers(algebra, algebra.transpose(a) if self.transpose else a, self.plan.reverse)


def _coefficients(plan: Plan, a: Group) -> list[tuple[Any, Any]]:
    if invariant(a):
        return [(x, row(plan, x.shape[0])) for x in _rows(a)]
    return [(x, tile(plan)) for x in planes(a)]


def _rows(x: Planes) -> Planes:
    return tuple(p[:, None] for p in x)


def _keep(refs: tuple, values: Planes) -> None:
    for ref, value in zip(refs, values, strict=True):
        ref[...] = value

"""The same in plain JAX for any device, in about 2 C + T / C steps that wait for one another, C near the root of T.

Time is cut into chunks of C steps, which all go at once: first each says what it does to a state (its coefficient over the whole
way, and the state it ends with from zero), then one state after the other enters its chunk, then the chunks run from those.
"""

from math import ceil, log2

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.scan.algebra import Algebra, Planes, add
from kernels_pallas.scan.groups import Group, grouped, invariant, planes


def forward(algebra: Algebra, a: Group, b: Group, h0: Planes, *, reverse: bool) -> tuple[Group, Planes]:
    """As `reference.forward`."""
    h = _states(algebra, _wide(a, h0), _wide(b, h0), h0, reverse)
    return grouped(h, b), _end(h, 0 if reverse else -1)


def backward(
    algebra: Algebra, a: Group, h: Group, h0: Planes, g: Group, g_last: Planes, *, reverse: bool
) -> tuple[Group, Group, Planes]:
    """The cotangents (da, db, dh0) for those of h and of the last state.

    l_t = a_{t+1}^T l_{t+1} + g_t is a recurrence of the same kind run the other way; db_t = l_t, da_t = l_t h_{t-1}^T,
    dh0 = a_0^T l_0.
    """
    first, last = (-1, 0) if reverse else (0, -1)
    coefficients = algebra.transpose(_wide(a, h0))
    fixed = invariant(a)
    shifted = coefficients if fixed else tuple(_shifted(x, jnp.zeros_like(x[:, 0]), not reverse) for x in coefficients)
    inputs = tuple(_added(x, y, last) for x, y in zip(_wide(g, h0), g_last, strict=True))
    l = _states(algebra, shifted, inputs, tuple(jnp.zeros_like(x) for x in h0), not reverse)
    before = tuple(_shifted(x, y, reverse) for x, y in zip(_wide(h, h0), h0, strict=True))
    da = algebra.outer(l, before)
    dh0 = algebra.act(coefficients if fixed else _end(coefficients, first), _end(l, first))
    if fixed:
        axes = (0, 1) if a[0].shape[0] == 1 else (1,)
        da = tuple(x.sum(axes).reshape(y.shape).astype(y.dtype) for x, y in zip(da, a, strict=True))
    return da if fixed else grouped(da, a), grouped(l, g), dh0


def _states(algebra: Algebra, a: Planes, b: Planes, h0: Planes, reverse: bool) -> Planes:
    """Every state; the last chunk (in reverse the first) is filled up with steps that are cut off again."""
    B, T, D = b[0].shape
    C = 2 ** ceil(log2(T) / 2)
    N = -(-T // C)
    fixed = tuple(x[:, None] for x in a) if a[0].ndim == 2 else None
    varying = None if fixed else tuple(_cut(x, N, C, reverse) for x in a)
    inputs = tuple(_cut(x, N, C, reverse) for x in b)

    def summarise(carry: tuple, now: tuple) -> tuple[tuple, None]:
        (through, h), (a, b) = carry, (fixed or now[0], now[1])
        return (algebra.compose(a, through), add(algebra.act(a, h), b)), None

    def hand_on(h: Planes, now: tuple) -> tuple[Planes, Planes]:
        return add(algebra.act(now[0], h), now[1]), h

    def step(h: Planes, now: tuple) -> tuple[Planes, Planes]:
        h = add(algebra.act(fixed or now[0], h), now[1])
        return h, h

    entering = tuple(x[:, None] for x in h0)
    if N > 1:
        chunks = jnp.zeros((B, N, D), h0[0].dtype)
        start = tuple(chunks + x for x in algebra.identity), (chunks,) * algebra.states
        (through, local), _ = lax.scan(summarise, start, (varying, inputs), reverse=reverse)
        moved = tuple(jnp.moveaxis(x, 1, 0) for x in through), tuple(jnp.moveaxis(x, 1, 0) for x in local)
        entering = tuple(jnp.moveaxis(x, 0, 1) for x in lax.scan(hand_on, h0, moved, reverse=reverse)[1])
    _, h = lax.scan(step, entering, (varying, inputs), reverse=reverse)
    keep = slice(N * C - T, None) if reverse else slice(T)
    return tuple(x.transpose(1, 2, 0, 3).reshape(B, N * C, D)[:, keep] for x in h)


def _wide(group: Group, like: Planes) -> Planes:
    return tuple(x.astype(like[0].dtype) for x in (group if invariant(group) else planes(group)))


def _cut(x: Array, N: int, C: int, reverse: bool) -> Array:
    """[B, T, D] -> [C, B, N, D]."""
    fill = N * C - x.shape[1]
    ends = (fill, 0, 0) if reverse else (0, fill, 0)
    x = lax.pad(x, x.dtype.type(0), ((0, 0, 0), ends, (0, 0, 0)))
    return x.reshape(x.shape[0], N, C, x.shape[2]).transpose(2, 0, 1, 3)


def _end(x: Planes, index: int) -> Planes:
    return tuple(p[:, index] for p in x)


def _shifted(x: Array, edge: Array, reverse: bool) -> Array:
    """x_{t-1} at t, in reverse x_{t+1}; the free place takes `edge`."""
    return jnp.concatenate([x[:, 1:], edge[:, None]] if reverse else [edge[:, None], x[:, :-1]], axis=1)


def _added(x: Array, y: Array, end: int) -> Array:
    """x with y added to its first (0) or last (-1) step."""
    if end == 0:
        return jnp.concatenate([x[:, :1] + y[:, None], x[:, 1:]], axis=1)
    return jnp.concatenate([x[:, :-1], x[:, -1:] + y[:, None]], axis=1)

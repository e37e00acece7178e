"""Ways along a line: step after step, by maps of states, and by blocks of steps merged level by level.

A level makes blocks twice as long: of two neighbours T is T_later T_earlier, S [T_later S_earlier, S_later], M [M_earlier,
M_later T_earlier], and the gates inside, G, get M_later S_earlier. Here a state is [JT, DK, DV].
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from paperlab.recurrence import affine
from paperlab.recurrence.orders import scan

MOST_TERMS = 8  # of a product of matrices that is written out as a sum of outer products
STEP_BY_STEP = "in_place"  # between blocks; measured on a CPU, 2.5 times as fast as lax.scan with gradients


class Gates(NamedTuple):
    """Of every step. J* are the sizes of state-tracking indices, all 1 in the plain model; leading axes broadcast to q's.

    source: [..., T, JT, JK, JV], what a step writes.
    transition: [..., T, JT, JT], what it passes on of what arrives.
    mark: [..., T, JO, JQ, JT], what it reads of what arrives.
    """

    source: Array
    transition: Array
    mark: Array


class Level(NamedTuple):
    """Blocks of a line as matrices, [..., blocks] of them: border is JT, rows are (step, JO, JQ), columns (step, JK, JV).

    through [JT, JT];  write [JT, columns];  read [rows, JT];  inside [rows, columns], None for blocks of one step.
    """

    through: Array
    write: Array
    read: Array
    inside: Array | None


def levels(gates: Gates, most: int | None = None) -> list[Level]:
    """Blocks of 1, 2, 4 ... steps, up to `most` (a power of two that divides T; T itself if omitted)."""
    T, JT = gates.transition.shape[-3:-1]
    most = T if most is None else most
    source, mark = gates.source, gates.mark
    write, read = source.reshape(*source.shape[:-2], -1), mark.reshape(*mark.shape[:-3], -1, JT)
    found = [Level(gates.transition, write, read, None)]
    while 1 << len(found) <= most:
        found.append(_merged(found[-1]))
    return found


def _merged(level: Level) -> Level:
    """Every two neighbours as one block."""
    through, write, read, inside = (None if x is None else (x[..., 0::2, :, :], x[..., 1::2, :, :]) for x in level)
    assert through is not None
    assert write is not None
    assert read is not None
    crossing = _times(read[1], write[0])
    nothing = jnp.zeros_like(crossing)
    earlier, later = (nothing, nothing) if inside is None else inside
    return Level(
        _times(through[1], through[0]),
        jnp.concatenate(_alike(_times(through[1], write[0]), write[1]), -1),
        jnp.concatenate(_alike(read[0], _times(read[1], through[0])), -2),
        jnp.concatenate([jnp.concatenate([earlier, nothing], -1), jnp.concatenate([crossing, later], -1)], -2),
    )


def _alike(a: Array, b: Array) -> list[Array]:
    """Both with the same leading axes."""
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return [jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b)]


def _times(a: Array, b: Array) -> Array:
    """a @ b, where either is mostly a few numbers wide: elementwise work, which thousands of tiny matrix products are not."""
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return _product(*(jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b)))


@jax.custom_vjp
def _product(a: Array, b: Array) -> Array:
    """Its derivatives by autodiff would pad every slice back to the whole, four times as slow."""
    n = a.shape[-1]
    if n > MOST_TERMS:
        return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
    total = a[..., :, :1] * b[..., :1, :]
    for i in range(1, n):
        total = total + a[..., :, i : i + 1] * b[..., i : i + 1, :]
    return total


_product.defvjp(
    lambda a, b: (_product(a, b), (a, b)),
    lambda kept, g: (_product(g, kept[1].swapaxes(-1, -2)), _product(kept[0].swapaxes(-1, -2), g)),
)


def one_step(q: Array, k: Array, v: Array, gates: Gates, state: Array) -> tuple[Array, Array]:
    """One step from a state [..., JT, DK, DV]: what it reads [..., DV, JO] of it, and the next one."""
    out = jnp.einsum("...oqi,...dq,...idv->...vo", gates.mark, q, state)
    written = jnp.einsum("...ikl,...dk,...vl->...idv", gates.source, k, v)
    return out, jnp.einsum("...ij,...jdv->...idv", gates.transition, state) + written


def read_own(q: Array, k: Array, v: Array, direct: Array) -> Array:
    """What a step reads of itself, [..., DV, JO]."""
    scores = (q[..., :, None] * k[..., None, :]).sum(-3)  # [..., JQ, JK]
    weights = (direct * scores[..., None, :, :, None]).sum((-3, -2))
    return _times(v, weights.swapaxes(-1, -2))


def sequential(q: Array, k: Array, v: Array, gates: Gates, state: Array) -> tuple[Array, Array]:
    def first(x: Array, own: int) -> Array:
        return jnp.moveaxis(x, -1 - own, 0)

    def step(state: Array, now: tuple) -> tuple[Array, Array]:
        q, k, v, gates = now
        out, state = one_step(q, k, v, gates, state)
        return state, out

    lines = (*(first(x, 2) for x in (q, k, v)), Gates(first(gates[0], 3), first(gates[1], 2), first(gates[2], 3)))
    state, out = lax.scan(step, state, lines)
    return jnp.moveaxis(out, 0, -3), state


# Arrays [..., JT, JT] acting on states [..., JT, DK DV].
STATES = affine.Structure(
    act=_times,
    compose=_times,
    transpose=lambda A: A.swapaxes(-1, -2),
    outer=lambda l, h: jnp.matmul(l, h.swapaxes(-1, -2), precision=lax.Precision.HIGHEST),
)


def associative(q: Array, k: Array, v: Array, gates: Gates, state: Array) -> tuple[Array, Array]:
    written = jnp.einsum("...ikl,...dk,...vl->...idv", gates.source, k, v)
    before, state = _states(gates.transition, written, state, "associative")
    return jnp.einsum("...oqi,...dq,...idv->...vo", gates.mark, q, before), state


def _states(through: Array, written: Array, state: Array, impl: str) -> tuple[Array, Array]:
    """The state before every step [..., T, JT, DK, DV], and after the last one."""
    shape = jnp.broadcast_shapes(through.shape[:-2], written.shape[:-3])
    b = jnp.broadcast_to(written, (*shape, *written.shape[-3:])).reshape(*shape, written.shape[-3], -1)
    A = through.reshape((1,) * (b.ndim - through.ndim) + through.shape)
    start = jnp.broadcast_to(state, (*shape[:-1], *state.shape[-3:])).reshape(*shape[:-1], state.shape[-3], -1)
    after, last = scan(STATES, A, b, start, impl=impl, axis=len(shape) - 1)
    before = jnp.concatenate([start[..., None, :, :], after[..., :-1, :, :]], -3)
    return before.reshape(*shape, *written.shape[-3:]), last.reshape(*shape[:-1], *written.shape[-3:])


def _times_state(T: Array, state: Array) -> Array:
    """T [..., JT, JT] on a state [..., JT, DK, DV]."""
    return _times(T, state.reshape(*state.shape[:-2], -1)).reshape(state.shape)


def blocks(q: Array, k: Array, v: Array, gates: Gates, state: Array, size: int) -> tuple[Array, Array]:
    """Blocks of `size` steps; zeros that write and read nothing fill the last one."""
    T, J = q.shape[-3], (*gates.mark.shape[-3:-1], *gates.source.shape[-2:])
    fill = -T % size
    gates = padded(gates, fill)
    q, k, v = (_in_blocks(_fill(x, fill, 2), size) for x in (q, k, v))
    cut = Gates(
        *(x.reshape(*x.shape[:-own], -1, size, *x.shape[1 - own :]) for x, own in zip(gates, (4, 3, 4), strict=True))
    )
    out, state = jax.checkpoint(partial(_read_blocks, size, J))(q, k, v, cut, state)
    out = out.reshape(*out.shape[:-4], -1, *out.shape[-2:])
    return out[..., :T, :, :], state


def _read_blocks(size: int, J: tuple, q: Array, k: Array, v: Array, cut: Gates, state: Array) -> tuple[Array, Array]:
    """q, k, v [..., blocks, size, D, J], gates [..., blocks, size, ...] -> out [..., blocks, size, DV, JO], last state.

    Whatever has no block of steps on both sides is written out elementwise: thousands of products of 4 x 4 matrices are slow.
    """
    JO, JQ, JK, JV = J
    top = levels(cut, size)[-1]
    through, write, read = (x[..., 0, :, :] for x in top[:3])
    JT, DK, DV = through.shape[-1], q.shape[-2], v.shape[-2]
    v = v.swapaxes(-1, -2)  # [..., size, JV, DV]
    S = jnp.moveaxis(write.reshape(*write.shape[:-1], size, JK, JV), -4, -2)  # [..., size, JK, JT, JV]
    M = read.reshape(*read.shape[:-2], size, JO, JQ, JT)

    def written(j: int) -> Array:
        values = _times(S[..., j, :, :], v)
        sums = jnp.einsum("...md,...mc->...dc", k[..., j], values.reshape(*values.shape[:-2], JT * DV))
        return sums.reshape(*sums.shape[:-1], JT, DV)

    writings = jnp.moveaxis(sum(map(written, range(1, JK)), written(0)), -2, -3)
    if q.shape[-4] == 1:
        before = jnp.broadcast_to(state[..., None, :, :, :], writings.shape)
        state = _times_state(through[..., 0, :, :], state) + writings[..., 0, :, :, :]
    else:
        before, state = _states(through, writings, state, STEP_BY_STEP)
    wide = jnp.moveaxis(before, -3, -2).reshape(*before.shape[:-3], DK, JT * DV)

    def seen(j: int) -> Array:
        states = jnp.einsum("...nd,...dc->...nc", q[..., j], wide)
        return _times(M[..., :, j, :], states.reshape(*states.shape[:-1], JT, DV))

    out = sum(map(seen, range(1, JQ)), seen(0))
    if top.inside is not None:
        G = top.inside[..., 0, :, :].reshape(*top.inside.shape[:-3], size, JO, JQ, size, JK, JV)
        weights = jnp.zeros((), G.dtype)
        for i in range(JQ):
            for j in range(JK):
                scores = jnp.einsum("...nd,...md->...nm", q[..., i], k[..., j])
                weights = weights + G[..., i, :, j, :] * scores[..., :, None, :, None]
        weights = weights.reshape(*weights.shape[:-4], size * JO, size * JV)
        inside = weights @ v.reshape(*v.shape[:-3], size * JV, DV)
        out = out + inside.reshape(*inside.shape[:-2], size, JO, DV)
    return out.swapaxes(-1, -2), state


def _in_blocks(x: Array, size: int) -> Array:
    return x.reshape(*x.shape[:-3], -1, size, *x.shape[-2:])


def padded(gates: Gates, fill: int) -> Gates:
    """Steps at the end that pass on everything, write nothing and read nothing."""
    source, transition, mark = gates
    if not fill:
        return gates
    one = jnp.broadcast_to(
        jnp.eye(transition.shape[-1], dtype=transition.dtype), (*transition.shape[:-3], fill, *transition.shape[-2:])
    )
    return Gates(_fill(source, fill, 3), jnp.concatenate([transition, one], -3), _fill(mark, fill, 3))


def _fill(x: Array, fill: int, own: int) -> Array:
    """Zeros at the end of time, which has `own` axes behind it."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - own - 1) + [(0, fill)] + [(0, 0)] * own) if fill else x

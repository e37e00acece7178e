"""One group of eight steps of a scan as vector operations: rows are steps, lanes are channels.

The states inside a group come in three doublings: after the one with distance s, row r knows the map over its last 2 s steps (fewer
where the group begins). The state that enters is then added by one application of the map over the whole way.
"""

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import pallas_tpu
from kernels_pallas.scan.algebra import Algebra, Planes, add

ROWS = 8
DISTANCES = (1, 2, 4)


def powers(algebra: Algebra, a: Planes, reverse: bool) -> list[Planes]:
    """The coefficients over the last 1, 2, 4 and 8 steps up to each row. a: planes [8, D]."""
    found = [a]
    for distance in DISTANCES:
        a = _select(distance, reverse, algebra.compose(a, _shifted(a, distance, reverse)), a)
        found.append(a)
    return found


def states(algebra: Algebra, powers: list[Planes], b: Planes, carry: Planes, reverse: bool) -> Planes:
    """The eight states after `carry` [1, D]. b: planes [8, D]."""
    for distance, a in zip(DISTANCES, powers, strict=False):
        b = _select(distance, reverse, add(b, algebra.act(a, _shifted(b, distance, reverse))), b)
    return add(algebra.act(powers[-1], carry), b)


def final(x: Planes, reverse: bool) -> Planes:
    """The row that the scan ends with, [1, D]."""
    return tuple(p[:1] if reverse else p[ROWS - 1 :] for p in x)


def entering(x: Planes, edge: Planes, reverse: bool) -> Planes:
    """For each row the one before it; for the first one `edge` [1, D]."""
    return _select(1, reverse, _shifted(x, 1, reverse), edge)


def row_numbers(like: Array) -> Array:
    """0 to 7, in every lane."""
    return lax.broadcasted_iota(jnp.int32, like.shape, 0)


def _shifted(x: Planes, distance: int, reverse: bool) -> Planes:
    """The rows `distance` steps before, in the order of the scan; what falls out at one end comes in at the other."""
    return tuple(pallas_tpu.roll(p, ROWS - distance if reverse else distance, 0) for p in x)


def _select(distance: int, reverse: bool, inside: Planes, outside: Planes) -> Planes:
    """`inside` in the rows that have at least `distance` rows before them."""
    row = row_numbers(inside[0])
    known = row < ROWS - distance if reverse else row >= distance
    return tuple(jnp.where(known, p, q) for p, q in zip(inside, outside, strict=True))

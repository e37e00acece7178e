"""What a coefficient of a linear recurrence is: a number, a complex number, a 2 x 2 block. The one shell works on any of them.

States and coefficients are tuples of planes, real arrays of one shape; everything below is elementwise over them.

    REAL       1 plane a state, 1 a coefficient    a h
    COMPLEX    2 (re, im),      2 (re, im)         a h on complex numbers
    BLOCK2     2 (h_0, h_1),    4 (rows first)     A h with A of 2 x 2
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Planes = tuple[Any, ...]


class Algebra(NamedTuple):
    """How coefficients act on states and follow one another.

    act(a, h) -> a h;  compose(later, earlier) -> later earlier;  transpose(a): of a as a real linear map;  outer(l, h) -> the
    cotangent of a in l^T (a h);  identity: the coefficient that changes nothing, a number a plane.
    """

    name: str
    states: int
    identity: tuple[float, ...]
    act: Callable[[Planes, Planes], Planes]
    compose: Callable[[Planes, Planes], Planes]
    transpose: Callable[[Planes], Planes]
    outer: Callable[[Planes, Planes], Planes]

    @property
    def coefficients(self) -> int:
        """Planes of a coefficient."""
        return len(self.identity)


def add(x: Planes, y: Planes) -> Planes:
    """x + y."""
    return tuple(p + q for p, q in zip(x, y, strict=True))


def _times(x: Planes, y: Planes) -> Planes:
    (a, b), (c, d) = x, y
    return a * c - b * d, a * d + b * c


def _conjugate(x: Planes) -> Planes:
    return x[0], -x[1]


def _block_act(a: Planes, h: Planes) -> Planes:
    return a[0] * h[0] + a[1] * h[1], a[2] * h[0] + a[3] * h[1]


def _block_compose(later: Planes, earlier: Planes) -> Planes:
    left, right = (_block_act(later, (earlier[j], earlier[2 + j])) for j in range(2))
    return left[0], right[0], left[1], right[1]


REAL = Algebra(
    "linear_scan",
    1,
    (1.0,),
    act=lambda a, h: (a[0] * h[0],),
    compose=lambda later, earlier: (later[0] * earlier[0],),
    transpose=lambda a: a,
    outer=lambda l, h: (l[0] * h[0],),
)
COMPLEX = Algebra(
    "complex_scan",
    2,
    (1.0, 0.0),
    act=_times,
    compose=_times,
    transpose=_conjugate,
    outer=lambda l, h: _times(l, _conjugate(h)),
)
BLOCK2 = Algebra(
    "block2_scan",
    2,
    (1.0, 0.0, 0.0, 1.0),
    act=_block_act,
    compose=_block_compose,
    transpose=lambda a: (a[0], a[2], a[1], a[3]),
    outer=lambda l, h: (l[0] * h[0], l[0] * h[1], l[1] * h[0], l[1] * h[1]),
)

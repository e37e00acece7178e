"""What every solver of this package shares: the cells with their exact Jacobians, and affine maps of small states.

A state is a tuple of K arrays of one shape (ParaGRU (h,), ParaLSTM (c, h)); a Jacobian is K rows of K such arrays, since channels
do not mix. All functions are elementwise, so they hold for one row of a kernel's tile as for a whole batch.
"""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array, lax
from jax import numpy as jnp

State = tuple[Array, ...]
Rows = tuple[State, ...]


class Cell(NamedTuple):
    """One recurrence h_t = f(x_t, h_{t-1}).

    linearized: (three gate inputs, `weights` vectors, state before) -> (state after, Jacobian).
    """

    name: str
    states: int
    weights: int
    linearized: Callable[[State, State, State], tuple[State, Rows]]

    def step(self, x: State, w: State, before: State) -> State:
        """The state after; what only the Jacobian needs is dropped by the compiler."""
        return self.linearized(x, w, before)[0]


def _gru(x: State, w: State, before: State) -> tuple[State, Rows]:
    (x_z, x_r, x_c), (a_z, a_r, a_c), (h,) = x, w, before
    z, r = lax.logistic(a_z * h + x_z), lax.logistic(a_r * h + x_r)
    c = jnp.tanh(a_c * (h * r) + x_c)
    dz, dr, dc = z * (1 - z) * a_z, r * (1 - r) * a_r, (1 - c * c) * a_c
    return ((1 - z) * h + z * c,), (((1 - z) + (c - h) * dz + z * dc * (r + h * dr),),)


def _lstm(x: State, w: State, before: State) -> tuple[State, Rows]:
    (x_f, x_o, x_c), (a_f, a_o, a_c, p_f, p_o), (c, h) = x, w, before
    f = lax.logistic(a_f * h + x_f + p_f * c)
    candidate = jnp.tanh(a_c * h + x_c)
    new = f * c + (1 - f) * candidate
    o = lax.logistic(a_o * h + x_o + p_o * new)
    out = jnp.tanh(new)
    df = (c - candidate) * f * (1 - f)
    cc, ch = f + df * p_f, df * a_f + (1 - f) * (1 - candidate * candidate) * a_c
    do, dout = out * o * (1 - o), o * (1 - out * out)
    hc, hh = (do * p_o + dout) * cc, do * (a_o + p_o * ch) + dout * ch
    return (new, o * out), ((cc, ch), (hc, hh))


GRU = Cell("gru", 1, 3, _gru)
LSTM = Cell("lstm", 2, 5, _lstm)


def applied(A: Rows, b: State) -> State:
    """A b."""
    return tuple(_sum([a * v for a, v in zip(row, b, strict=True)]) for row in A)


def composed(A: Rows, B: Rows) -> Rows:
    """A B: first B, then A."""
    return tuple(tuple(_sum([a * B[k][j] for k, a in enumerate(row)]) for j in range(len(A))) for row in A)


def plus(a: State, b: State) -> State:
    """a + b."""
    return tuple(x + y for x, y in zip(a, b, strict=True))


def minus(a: State, b: State) -> State:
    """a - b."""
    return tuple(x - y for x, y in zip(a, b, strict=True))


def furthest(a: State, b: State) -> Array:
    """max over the variables of |a - b|."""
    found = [jnp.abs(x) for x in minus(a, b)]
    return found[0] if len(found) == 1 else jnp.maximum(*found)


def _sum(terms: list[Array]) -> Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total

"""What every solver of this package shares: the cells with their exact Jacobians, and affine maps of small states.

A state is a tuple of K arrays of one shape (ParaGRU (h,), ParaLSTM (c, h)); a Jacobian is K rows of K such arrays, since channels
do not mix. All functions are elementwise, so they hold for one row of a kernel's tile as for a whole batch.

Documents: the cells of DOCUMENTS reset the state to zero before a step whose inputs `marked` has marked, by a number far below any
gate's in an input that such a step has no use for. ParaGRU's reset gate then has nothing to gate. ParaLSTM's c' is then
sigmoid(-x_f) tanh(x_c) alone, which takes the place of x_c.
"""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array, lax
from jax import numpy as jnp

State = tuple[Array, ...]
Rows = tuple[State, ...]
MARK = -65536.0


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
    a_f, a_o, a_c, p_f, p_o = w
    return _lstm_output(x[1], a_o, p_o, before[1], *_lstm_memory(x, (a_f, a_c, p_f), before))


def _lstm_memory(x: State, w: State, before: State) -> tuple[Array, Array, Array]:
    """c' and its derivatives by c and h."""
    (x_f, _, x_c), (a_f, a_c, p_f), (c, h) = x, w, before
    f = lax.logistic(a_f * h + x_f + p_f * c)
    candidate = jnp.tanh(a_c * h + x_c)
    df = (c - candidate) * f * (1 - f)
    return f * c + (1 - f) * candidate, f + df * p_f, df * a_f + (1 - f) * (1 - candidate * candidate) * a_c


def _lstm_output(x_o: Array, a_o: Array, p_o: Array, h: Array, c: Array, cc: Array, ch: Array) -> tuple[State, Rows]:
    """(c', h') and the whole Jacobian from the part of c'."""
    o = lax.logistic(a_o * h + x_o + p_o * c)
    out = jnp.tanh(c)
    do, dout = out * o * (1 - o), o * (1 - out * out)
    hc, hh = (do * p_o + dout) * cc, do * (a_o + p_o * ch) + dout * ch
    return (c, o * out), ((cc, ch), (hc, hh))


def _gru_of_documents(x: State, w: State, before: State) -> tuple[State, Rows]:
    first = x[1] < 0.5 * MARK
    after, ((J,),) = _gru(x, w, (_zero_if(first, before[0]),))
    return after, ((_zero_if(first, J),),)


def _lstm_of_documents(x: State, w: State, before: State) -> tuple[State, Rows]:
    a_f, a_o, a_c, p_f, p_o = w
    first = x[0] < 0.5 * MARK
    c, h = (_zero_if(first, v) for v in before)
    new, cc, ch = _lstm_memory(x, (a_f, a_c, p_f), (c, h))
    memory = jnp.where(first, x[2], new), _zero_if(first, cc), _zero_if(first, ch)
    return _lstm_output(x[1], jnp.where(first, jnp.zeros_like(h), a_o), p_o, h, *memory)


def _zero_if(flag: Array, v: Array) -> Array:
    return jnp.where(flag, jnp.zeros_like(v), v)


GRU = Cell("gru", 1, 3, _gru)
LSTM = Cell("lstm", 2, 5, _lstm)
DOCUMENTS = {
    GRU: Cell("gru_of_documents", 1, 3, _gru_of_documents),
    LSTM: Cell("lstm_of_documents", 2, 5, _lstm_of_documents),
}


def marked(cell: Cell, x: Array, starts: Array) -> Array:
    """x [B,T,3,D] for the cell of DOCUMENTS that stands for `cell`; starts [B,T]: reset the state before this step."""
    first, (one, two, three) = starts[..., None] != 0, (x[..., i, :] for i in range(3))
    mark = jnp.asarray(MARK, x.dtype)
    if cell is GRU:
        return jnp.stack([one, jnp.where(first, mark, two), three], -2)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    written = (lax.logistic(-one.astype(wide)) * jnp.tanh(three.astype(wide))).astype(x.dtype)
    return jnp.stack([jnp.where(first, mark, one), two, jnp.where(first, written, three)], -2)


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

"""The definitions, short and slow: the recurrence step by step, and Newton's method on the whole sequence at once."""

from jax import Array, lax
from jax import numpy as jnp

from kernels_pallas.newton.core import Cell, Rows, State, applied, furthest, minus, plus


def split(x: Array) -> State:
    """[..., n, D] -> n arrays [..., D]."""
    return tuple(x[..., i, :] for i in range(x.shape[-2]))


def shifted(start: State, states: State) -> State:
    """The states before: [B,D] and [B,T,D] -> [B,T,D], one step later."""
    return tuple(jnp.concatenate([s[:, None], h[:, :-1]], axis=1) for s, h in zip(start, states, strict=True))


def residual(cell: Cell, x: Array, w: State, start: State, states: State) -> Array:
    """max |f(h_{t-1}) - h_t| of each row of the batch, [B] float32; not differentiated."""
    wide = states[0].dtype
    after = cell.step(split(x.astype(wide)), w, shifted(start, states))
    return lax.stop_gradient(furthest(after, states).max(axis=(1, 2)).astype(jnp.float32))


def sequential(cell: Cell, x: Array, w: State, start: State) -> State:
    """T steps by lax.scan: x [B,T,3,D], w vectors [D], start [B,D] each -> states [B,T,D] each, in the dtype of `start`."""
    wide = start[0].dtype

    def step(before: State, x_t: Array) -> tuple[State, State]:
        after = cell.step(split(x_t.astype(wide)), w, before)
        return after, after

    states = lax.scan(step, start, x.swapaxes(0, 1))[1]
    return tuple(h.swapaxes(0, 1) for h in states)


def newton(cell: Cell, x: Array, w: State, start: State, iterations: int) -> State:
    """The same after so many Newton steps on all T unknowns, from the guess f(0, x)."""
    gates = split(x.astype(start[0].dtype))
    states = cell.step(gates, w, tuple(jnp.zeros_like(gates[0]) for _ in start))
    for _ in range(iterations):
        after, J = cell.linearized(gates, w, shifted(start, states))
        states = plus(states, _forward_substitution(J, minus(after, states)))
    return states


def _forward_substitution(J: Rows, r: State) -> State:
    """delta_t = J_t delta_{t-1} + r_t, delta_0 = 0."""

    def step(delta: State, items: tuple[Rows, State]) -> tuple[State, State]:
        J_t, r_t = items
        delta = plus(applied(J_t, delta), r_t)
        return delta, delta

    J = tuple(tuple(a.swapaxes(0, 1) for a in row) for row in J)
    r = tuple(v.swapaxes(0, 1) for v in r)
    deltas = lax.scan(step, tuple(jnp.zeros_like(v[0]) for v in r), (J, r))[1]
    return tuple(d.swapaxes(0, 1) for d in deltas)

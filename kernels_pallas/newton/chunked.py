"""Newton's method block by block of time in plain JAX: blocks one after another, log2 of their length steps inside each."""

import jax
from jax import Array, lax
from jax import numpy as jnp

from kernels_pallas.newton.core import Cell, Rows, State, applied, composed, minus, plus
from kernels_pallas.newton.reference import shifted, split


def chunked(cell: Cell, x: Array, w: State, start: State, iterations: int, time: int) -> State:
    """States [B,T,D] each, `iterations` Newton steps in every block of `time` positions from the last state before it."""
    B, T, _, D = x.shape
    time = min(time, T)
    x = jnp.pad(x, ((0, 0), (0, -T % time), (0, 0), (0, 0)))
    blocks = x.reshape(B, -1, time, 3, D).swapaxes(0, 1)

    def block(start: State, x: Array) -> tuple[State, State]:
        states = _newton(cell, split(x.astype(start[0].dtype)), w, start, iterations)
        return tuple(h[:, -1] for h in states), states

    states = lax.scan(block, start, blocks)[1]
    return tuple(h.swapaxes(0, 1).reshape(B, -1, D)[:, :T] for h in states)


def _newton(cell: Cell, x: State, w: State, start: State, iterations: int) -> State:
    def iteration(_: int, states: State) -> State:
        after, J = cell.linearized(x, w, shifted(start, states))
        return plus(states, _reduced(J, minus(after, states)))

    guess = cell.step(x, w, tuple(jnp.zeros_like(x[0]) for _ in start))
    return lax.fori_loop(0, iterations, iteration, guess)


def _reduced(J: Rows, r: State) -> State:
    """delta_t = J_t delta_{t-1} + r_t, delta_0 = 0, by recursive doubling: at every step position t absorbs t - 2^i."""
    time = r[0].shape[1]
    one = tuple(tuple(jnp.full_like(r[0], k == j) for j in range(len(r))) for k in range(len(r)))
    zero = tuple(jnp.zeros_like(v) for v in r)

    def double(i: Array, maps: tuple[Rows, State]) -> tuple[Rows, State]:
        (A, b), back = maps, time - (1 << i)
        A_e, b_e = jax.tree.map(
            lambda fill, v: lax.dynamic_slice_in_dim(jnp.concatenate([fill, v], axis=1), back, time, axis=1),
            (one, zero),
            maps,
        )
        return composed(A, A_e), plus(applied(A, b_e), b)

    return lax.fori_loop(0, (time - 1).bit_length(), double, (J, r))[1]

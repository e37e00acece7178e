"""Iterating on a trajectory: a fixed count, to a tolerance, window after window; and the gradient at the solution.

Implicit differentiation: where h_t = f_t(h_{t-1}) holds, the cotangents l_t = J_{t+1}^T l_{t+1} + g_t are one linear recurrence in
reverse, and gradients are one vector-Jacobian product of all steps at once with cotangent l. Nothing of the iteration is kept but
the trajectory, so memory does not depend on the count (ParaRNN, arXiv 2510.21450, equation 2.6).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from paperlab.recurrence.jacobian import transposed
from paperlab.recurrence.newton_cell import Cell, Solver
from paperlab.recurrence.newton_system import (
    Reduction,
    System,
    apply,
    apply_linearized,
    corrected,
    first_guess,
    largest,
    solve,
)


class Trajectory(NamedTuple):
    """States [batch..., T, *state], and iterations and convergence of every sequence [batch...]."""

    states: Array
    iterations: Array
    converged: Array


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def implicit(cell: Cell, solver: Solver, reduction: Reduction, system: System, guess: Array | None) -> Trajectory:
    """The trajectory, differentiated at the solution; the guess has no gradient."""
    return trajectory(cell, solver, reduction, system, guess)


def _forward(cell: Cell, solver: Solver, reduction: Reduction, system: System, guess: Array | None) -> tuple:
    found = implicit(cell, solver, reduction, system, guess)
    return found, (system, found.states, None if guess is None else jnp.zeros_like(guess))


def _backward(cell: Cell, solver: Solver, reduction: Reduction, kept: tuple, cotangents: Trajectory) -> tuple:
    system, h, no_guess = kept
    l = adjoint(cell, reduction, system, h, cotangents.states)

    def steps(params: Any, x: Any, h0: Array) -> Array:
        return apply(cell, System(params, x, h0, system.starts, system.mask), h)

    params, x, h0 = jax.vjp(steps, system.params, system.x, system.h0)[1](l)
    return System(params, x, h0, None, None), no_guess


implicit.defvjp(_forward, _backward)


def adjoint(cell: Cell, reduction: Reduction, system: System, h: Array, g: Array) -> Array:
    """l_t = J_{t+1}^T l_{t+1} + g_t: the whole derivative of a loss with respect to every state, from the direct parts g."""
    _, J = apply_linearized(cell, system, h)
    time = h.ndim - len(cell.state) - 1
    following = J[(slice(None),) * time + (slice(1, None),)]
    nothing = jnp.zeros_like(J[(slice(None),) * time + (slice(1),)])
    following = transposed(cell.structure, jnp.concatenate([following, nothing], time))
    return solve(cell, reduction, following, g, reverse=True)


def trajectory(cell: Cell, solver: Solver, reduction: Reduction, system: System, guess: Array | None) -> Trajectory:
    """The trajectory by iteration, in windows or at once."""
    if solver.window is None:
        return _whole(cell, solver, reduction, system, guess)
    return _in_windows(cell, solver, reduction, system, guess)


def _whole(cell: Cell, solver: Solver, reduction: Reduction, system: System, guess: Array | None) -> Trajectory:
    like = states_like(cell, system)
    start = first_guess(cell, system, like)
    h = start if guess is None else guess
    limit = solver.limit(like.shape[like.ndim - len(cell.state) - 1])
    if solver.adaptive:
        return _to_tolerance(cell, solver, reduction, system, h, start, limit)

    def iterate(_: int, h: Array) -> Array:
        return corrected(cell, solver, reduction, system, h, start)[0]

    batch = system.h0.shape[: system.h0.ndim - len(cell.state)]
    h = lax.fori_loop(0, limit, iterate, h)
    return Trajectory(h, jnp.full(batch, limit, jnp.int32), jnp.ones(batch, bool))


def _to_tolerance(
    cell: Cell, solver: Solver, reduction: Reduction, system: System, h: Array, start: Array, limit: int
) -> Trajectory:
    """Until every sequence has met the tolerance, or can't: one whose guess is not finite never will."""
    hopeless = ~jnp.isfinite(largest(cell, start))

    def met(h: Array) -> Array:
        bound = (solver.tolerance or 0.0) + (solver.relative or 0.0) * largest(cell, h)
        return largest(cell, apply(cell, system, h) - h) <= bound

    def unfinished(carry: tuple) -> Array:
        count, _, done, _ = carry
        return (count < limit) & ~(done | hopeless).all()

    def iterate(carry: tuple) -> tuple:
        count, h, done, iterations = carry
        h, _ = corrected(cell, solver, reduction, system, h, start)
        return count + 1, h, met(h), jnp.where(done, iterations, count + 1)

    done = met(h)
    _, h, done, iterations = lax.while_loop(
        unfinished, iterate, (jnp.int32(0), h, done, jnp.zeros(done.shape, jnp.int32))
    )
    return Trajectory(h, iterations, done)


def _in_windows(cell: Cell, solver: Solver, reduction: Reduction, system: System, guess: Array | None) -> Trajectory:
    """The last window is filled up with steps that leave the state alone."""
    like = states_like(cell, system)
    time = like.ndim - len(cell.state) - 1
    T = like.shape[time]
    width = min(solver.window or T, T)
    fill = -T % width
    mask = system.mask
    if fill:
        mask = jnp.ones((*like.shape[:time], T), bool) if mask is None else mask

    def cut(x: Array) -> Array:
        """[batch..., T, ...] -> [windows, batch..., width, ...]."""
        x = jnp.pad(x, [(0, fill if axis == time else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:time], -1, width, *x.shape[time + 1 :]), time, 0)

    def window(h0: Array, now: tuple) -> tuple[Array, Trajectory]:
        x, starts, mask, guess = now
        found = _whole(cell, solver, reduction, System(system.params, x, h0, starts, mask), guess)
        return found.states[(slice(None),) * time + (-1,)], found

    cuts = jax.tree.map(cut, (system.x, system.starts, mask, guess))
    _, found = lax.scan(window, system.h0, cuts)
    states = jnp.moveaxis(found.states, 0, time)
    states = states.reshape(*states.shape[:time], -1, *cell.state)[(slice(None),) * time + (slice(T),)]
    return Trajectory(states, found.iterations.max(0), found.converged.all(0))


def states_like(cell: Cell, system: System) -> Array:
    """Zeros shaped like the states of a system."""
    time = system.h0.ndim - len(cell.state)
    T = jax.tree.leaves(system.x)[0].shape[time]
    return jnp.zeros((*system.h0.shape[:time], T, *cell.state), system.h0.dtype)

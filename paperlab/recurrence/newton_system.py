"""A sequence as one system of equations, and the correction that one iteration makes to a trajectory.

Unknowns are all the states of a sequence; the residual of an iterate is r_t = f_t(h_{t-1}) - h_t, the Jacobian of f_t is J_t:

    newton      d_t = J_t d_{t-1} + r_t                        a linear recurrence of the cell's structure
    quasi       the same with diag(J_t)                        elementwise
    picard      d_t = r_t
    elk         min over d of |d_t - J_t d_{t-1} - r_t|^2 + trust |d_t|^2, summed over t       newton_elk.py

and h + damping * d is the next iterate. All arrays here are in the carry dtype and laid out [batch..., T, ...], and everything that
makes a step special is part of f_t: a reset (h_{t-1} = 0), a masked step (f_t(h) = h).

Source: ParaRNN (arXiv 2510.21450), section 2; DEER (arXiv 2309.12252); quasi-DEER and ELK (arXiv 2407.19115), section 4.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from paperlab.recurrence.block import block_scan
from paperlab.recurrence.jacobian import identity, linearized, linearized_diagonal
from paperlab.recurrence.linear import linear_scan
from paperlab.recurrence.newton_cell import Cell, Solver
from paperlab.recurrence.newton_elk import kalman_correction


class System(NamedTuple):
    """The equations of a batch of sequences.

    params, x: arguments of the cell, leaves of x [batch..., T, features].
    h0: [batch..., *state], before the first step.
    starts: bool [batch..., T] or None, where the state is reset to zero before the step.
    mask: bool [batch..., T] or None, False where a step leaves the state alone.
    """

    params: Any
    x: Any
    h0: Array
    starts: Array | None
    mask: Array | None


class Reduction(NamedTuple):
    """How linear systems are solved: `impl` and `chunk` of block_scan."""

    impl: str
    chunk: int


def entering(cell: Cell, system: System, h: Array) -> Array:
    """The state that every step starts from."""
    time = h.ndim - len(cell.state) - 1
    before = jnp.concatenate([jnp.expand_dims(system.h0, time), h[(slice(None),) * time + (slice(-1),)]], time)
    return before if system.starts is None else jnp.where(_over(system.starts, before), 0, before)


def apply(cell: Cell, system: System, h: Array) -> Array:
    """f_t(h_{t-1}) for all t at once."""
    before = entering(cell, system, h)
    return _kept(system, cell.step(system.params, system.x, before).astype(h.dtype), before)


def apply_linearized(cell: Cell, system: System, h: Array) -> tuple[Array, Array]:
    """(f_t(h_{t-1}), J_t) for all t at once; J is zero where the state is reset."""
    before = entering(cell, system, h)
    after, J = linearized(cell, system.params, system.x, before)
    J = _special(system, J, identity(cell.structure, cell.state, h.dtype))
    return _kept(system, after.astype(h.dtype), before), J


def apply_diagonal(cell: Cell, system: System, h: Array) -> tuple[Array, Array]:
    """`apply_linearized` with the diagonal alone, shaped like h."""
    before = entering(cell, system, h)
    after, J = linearized_diagonal(cell, system.params, system.x, before)
    return _kept(system, after.astype(h.dtype), before), _special(system, J, jnp.ones(cell.state, h.dtype))


def first_guess(cell: Cell, system: System, like: Array) -> Array:
    """Where iteration starts: the cell's own guess, or one step from h0 at the first position and from zero at the others."""
    if cell.guess is None:
        return apply(cell, system, jnp.zeros_like(like))
    return jnp.broadcast_to(cell.guess(system.params, system.x), like.shape).astype(like.dtype)


def corrected(
    cell: Cell, solver: Solver, reduction: Reduction, system: System, h: Array, guess: Array
) -> tuple[Array, Array]:
    """One iteration: (the next iterate, the residual of h).

    Where an iterate overflows it starts again from the guess: the positions that are right by now come before it.
    """
    if solver.method == "picard":
        residual = correction = apply(cell, system, h) - h
    elif solver.method in ("quasi", "quasi_elk"):
        after, J = apply_diagonal(cell, system, h)
        residual = after - h
        time = h.ndim - len(cell.state) - 1
        numbers, r = (x.reshape(*h.shape[: time + 1], -1) for x in (J, residual))
        if solver.method == "quasi":
            correction, _ = linear_scan(numbers, r, axis=time, impl=reduction.impl, chunk=reduction.chunk)
        else:
            correction = kalman_correction("diagonal", numbers, r, solver)
        correction = correction.reshape(h.shape)
    else:
        after, J = apply_linearized(cell, system, h)
        residual = after - h
        if solver.method == "newton":
            correction = solve(cell, reduction, J, residual)
        else:
            correction = kalman_correction(cell.structure, J, residual, solver)
    following = h + solver.damping * correction
    return jnp.where(jnp.isfinite(following), following, guess), residual


def solve(cell: Cell, reduction: Reduction, J: Array, r: Array, *, reverse: bool = False) -> Array:
    """d_t = J_t d_{t-1} + r_t from d = 0; in reverse d_t = J_t d_{t+1} + r_t."""
    impl, chunk = reduction
    return block_scan(J, r, structure=cell.structure, reverse=reverse, impl=impl, chunk=chunk)[0]


def largest(cell: Cell, h: Array) -> Array:
    """[batch...]: the largest absolute entry of every sequence; NaN if there is one."""
    return jnp.abs(h).max(tuple(range(h.ndim - len(cell.state) - 1, h.ndim)))


def _kept(system: System, after: Array, before: Array) -> Array:
    return after if system.mask is None else jnp.where(_over(system.mask, after), after, before)


def _special(system: System, J: Array, alone: Array) -> Array:
    if system.mask is not None:
        J = jnp.where(_over(system.mask, J), J, alone)
    return J if system.starts is None else jnp.where(_over(system.starts, J), 0, J)


def _over(flags: Array, x: Array) -> Array:
    """[batch..., T] with axes for the rest of x."""
    return flags.reshape(*flags.shape, *(1,) * (x.ndim - flags.ndim))

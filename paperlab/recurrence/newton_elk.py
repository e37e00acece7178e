"""The Levenberg-Marquardt correction of a trajectory by a parallel Kalman smoother.

    min over d of  sum_t |d_t - J_t d_{t-1} - r_t|^2 + trust |d_t|^2,    d_{-1} = 0

is the most probable path of a linear Gaussian model with dynamics d_t = J_t d_{t-1} + r_t + noise and every d_t observed to be 0
with variance 1 / trust. Both passes of the smoother are associative:

    filter      five-tuples (A, b, C, eta, J), composed as below: 2 log2 T levels; b is the filtered mean, C its variance
    smoother    s_t = E_t s_{t+1} + m_t - E_t (J_{t+1} m_t + r_{t+1}),  E_t = C_t J_{t+1}^T (J_{t+1} C_t J_{t+1}^T + I)^{-1}:
                a linear recurrence in reverse

Work for states of n numbers: T n elementwise, T d^3 for matrices of width d (blocks: one matrix of width K a channel). As trust
goes to 0 the correction goes to Newton's. The filter alone (Solver.smooth=False) is what the authors' code applies.

Source: arXiv 2407.19115, section 4.2 and appendix; Sarkka and Garcia-Fernandez 2021 (arXiv 1905.13002), equations 9 to 16.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from paperlab.recurrence.block import block_scan
from paperlab.recurrence.linear import linear_scan
from paperlab.recurrence.newton_cell import Solver

dot = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class Element(NamedTuple):
    """What a stretch of steps says: d at its end given d before it is N(A d + b, C), and what was observed in it weighs on the d
    before it with information J and information vector eta."""

    A: Array
    b: Array
    C: Array
    eta: Array
    J: Array


def kalman_correction(structure: str, J: Array, r: Array, solver: Solver) -> Array:
    """The d that minimises the sum above; J in the layout of `block_scan`, r and d [batch..., T, *state]."""
    if structure == "diagonal":
        return _elementwise(J, r, solver)
    if structure == "blocks":  # one small matrix a channel
        d = kalman_correction("heads", jnp.moveaxis(J, -1, -3), r.swapaxes(-1, -2), solver)
        return d.swapaxes(-1, -2)
    return _by_matrices(structure, J, r, solver)


def _elementwise(J: Array, r: Array, solver: Solver) -> Array:
    gain = solver.trust / (1 + solver.trust)
    rest = 1 - gain
    steps = Element(rest * J, rest * r, jnp.full_like(r, rest), -gain * J * r, gain * J * J)
    m, C = _filtered(_compose_numbers, steps, r.ndim - 2)
    if not solver.smooth:
        return m
    J, r = _next(J, r.ndim - 2), _next(r, r.ndim - 2)
    E = C * J / (J * C * J + 1)
    return linear_scan(E, m - E * (J * m + r), reverse=True, impl="associative")[0]


def _by_matrices(structure: str, J: Array, r: Array, solver: Solver) -> Array:
    gain = solver.trust / (1 + solver.trust)
    rest = 1 - gain
    eye = jnp.eye(r.shape[-1], dtype=r.dtype)
    transposed = J.swapaxes(-1, -2)
    steps = Element(
        rest * J,
        rest * r,
        jnp.broadcast_to(rest * eye, J.shape),
        -gain * _act(transposed, r),
        gain * dot(transposed, J),
    )
    time = r.ndim - (3 if structure == "heads" else 2)
    m, C = _filtered(_compose_matrices, steps, time)
    if not solver.smooth:
        return m
    J, r = _next(J, time), _next(r, time)
    through = dot(J, C)
    E = jnp.linalg.solve(dot(through, J.swapaxes(-1, -2)) + eye, through).swapaxes(-1, -2)
    return block_scan(E, m - _act(E, _act(J, m) + r), structure=structure, reverse=True, impl="associative")[0]


def _filtered(compose, steps: Element, time: int) -> tuple[Array, Array]:
    """Filtered means and variances. A, eta and J of the first step say nothing here: the state before it is known."""
    found = lax.associative_scan(compose, steps, axis=time)
    return found.b, found.C


def _compose_numbers(earlier: Element, later: Element) -> Element:
    share = 1 / (1 + earlier.C * later.J)
    return Element(
        A=later.A * earlier.A * share,
        b=later.A * share * (earlier.b + earlier.C * later.eta) + later.b,
        C=later.A * later.A * earlier.C * share + later.C,
        eta=earlier.A * share * (later.eta - later.J * earlier.b) + earlier.eta,
        J=earlier.A * earlier.A * later.J * share + earlier.J,
    )


def _compose_matrices(earlier: Element, later: Element) -> Element:
    eye = jnp.eye(earlier.b.shape[-1], dtype=earlier.b.dtype)
    share = jnp.linalg.inv(eye + dot(earlier.C, later.J))  # the eigenvalues of the sum are at least 1
    forward, backward = dot(later.A, share), dot(share, earlier.A).swapaxes(-1, -2)
    return Element(
        A=dot(forward, earlier.A),
        b=_act(forward, earlier.b + _act(earlier.C, later.eta)) + later.b,
        C=dot(dot(forward, earlier.C), later.A.swapaxes(-1, -2)) + later.C,
        eta=_act(backward, later.eta - _act(later.J, earlier.b)) + earlier.eta,
        J=dot(dot(backward, later.J), earlier.A) + earlier.J,
    )


def _act(A: Array, x: Array) -> Array:
    return dot(A, x[..., None])[..., 0]


def _next(x: Array, time: int) -> Array:
    """x_{t+1} at t; zero at the last."""
    later = x[(slice(None),) * time + (slice(1, None),)]
    return jnp.concatenate([later, jnp.zeros_like(x[(slice(None),) * time + (slice(1),)])], time)

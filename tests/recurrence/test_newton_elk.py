"""The Levenberg-Marquardt correction against the normal equations that define it, and where it helps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.recurrence.block import block_scan
from paperlab.recurrence.jacobian import as_matrix
from paperlab.recurrence.newton import newton_iterates
from paperlab.recurrence.newton_cell import Solver
from paperlab.recurrence.newton_elk import kalman_correction
from tests.recurrence.cells import elman, elman_params
from tests.recurrence.laws import QUICK

STATES = {"diagonal": (4,), "blocks": (2, 3), "heads": (2, 3), "dense": (4,)}
jit = partial(jax.jit, compiler_options=QUICK)


def draw(structure, T=9):
    random = np.random.default_rng(0)
    state = STATES[structure]
    own = state if structure == "diagonal" else (2, *state) if structure == "blocks" else (*state, state[-1])
    return jnp.asarray(random.standard_normal((2, T, *own))), jnp.asarray(random.standard_normal((2, T, *state)))


def correction(structure, J, r, **options):
    return jit(lambda J, r: kalman_correction(structure, J, r, Solver("elk", **options)))(J, r)


def minimiser(structure, J, r, trust):
    """argmin |M d - r|^2 + trust |d|^2 with the whole sequence as one matrix M = 1 - J shifted; [T, N]."""
    J, r = np.asarray(as_matrix(structure, J)), np.asarray(r).reshape(r.shape[0], -1)
    T, N = r.shape
    M = np.eye(T * N)
    for t in range(1, T):
        M[t * N : (t + 1) * N, (t - 1) * N : t * N] = -J[t]
    return np.linalg.solve(M.T @ M + trust * np.eye(T * N), M.T @ r.reshape(-1)).reshape(T, N)


@pytest.mark.parametrize("structure", STATES)
def test_smoothing_minimises_the_sum_of_squares(structure):
    with jax.enable_x64(True):
        J, r = draw(structure)
        got = np.asarray(correction(structure, J, r, trust=0.7)).reshape(2, 9, -1)
        for row in range(2):
            np.testing.assert_allclose(got[row], minimiser(structure, J[row], r[row], 0.7), rtol=0, atol=1e-10)


@pytest.mark.parametrize("structure", ["diagonal", "dense"])
def test_filtering_is_the_forward_pass_of_it(structure):
    """Up to step t nothing later matters: the filtered d_t is the smoothed end of the sequence cut there."""
    with jax.enable_x64(True):
        J, r = draw(structure)
        got = correction(structure, J, r, trust=0.7, smooth=False)
        for t in (0, 3, 8):
            want = minimiser(structure, J[0, : t + 1], r[0, : t + 1], 0.7)[-1]
            np.testing.assert_allclose(np.asarray(got[0, t]).reshape(-1), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("structure", ["diagonal", "dense"])
def test_without_trust_it_is_newtons(structure):
    with jax.enable_x64(True):
        J, r = draw(structure)
        want, _ = block_scan(J * 0.3, r, structure=structure, impl="sequential")
        np.testing.assert_allclose(correction(structure, J * 0.3, r, trust=1e-12), want, rtol=0, atol=1e-9)


def test_it_stays_bounded_where_newton_explodes():
    """A chaotic cell: the largest residual on the way, Newton's and that of Levenberg-Marquardt."""
    with jax.enable_x64(True):
        cell, params = elman(8, zero_guess=True), elman_params(8, 3, 3.0)
        x = np.random.default_rng(2).standard_normal((2, 40, 3))

        def worst(solver):
            return jit(partial(newton_iterates, cell, params, iterations=4, solver=solver))(x)[1].max()

        newton = worst(Solver())
        assert newton > 1e6
        for method in ("elk", "quasi_elk"):
            assert worst(Solver(method, trust=1.0)) < 3

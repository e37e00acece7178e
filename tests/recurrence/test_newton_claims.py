"""What ParaRNN claims about Newton's method on sequences, in the small (arXiv 2510.21450; float64)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.recurrence.newton import newton_iterates, newton_solve
from paperlab.recurrence.newton_cell import Solver
from tests.recurrence.cells import elman, elman_params, gru, gru_params, lstm, lstm_params
from tests.recurrence.laws import QUICK

jit = partial(jax.jit, compiler_options=QUICK)


@pytest.mark.parametrize("T", [64, 1024])
@pytest.mark.parametrize(("cell", "params"), [(gru, gru_params), (lstm, lstm_params)], ids=["gru", "lstm"])
def test_three_iterations_suffice_whatever_the_length(cell, params, T):
    with jax.enable_x64(True):
        params, x = params(16, 16, 4), np.random.default_rng(0).standard_normal((1, T, 16))
        run = partial(newton_iterates, cell(16), params, impl="chunked", chunk=32)
        _, residuals = jit(partial(run, iterations=4))(x)
        _, picard = jit(partial(run, iterations=3, solver=Solver("picard")))(x)
        assert residuals[3] < 1e-6
        assert residuals[4] < 1e-12
        assert picard[3] > 0.05  # 0.3 at the paper's width of 64


def test_bounded_recurrent_weights_are_what_buys_this():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((1, 256, 32))
        run = jit(partial(newton_iterates, gru(32), iterations=3, impl="chunked", chunk=16))
        bounds = (0.5, 0.9, 2.0, 4.0, 8.0)
        residuals = [float(run(gru_params(32, 32, a=bound), x)[1][3, 0]) for bound in bounds]
        assert residuals == sorted(residuals)
        assert max(residuals[:2]) < 1e-3
        assert min(residuals[3:]) > 10


def test_the_exact_jacobian_beats_its_diagonal_on_a_dense_cell():
    with jax.enable_x64(True):
        x = np.random.default_rng(1).standard_normal((1, 128, 4))

        @partial(jit, static_argnums=0)
        def iterations(method, params):
            solver = Solver(method, tolerance=1e-10)
            return newton_solve(elman(16), params, x, solver=solver, impl="chunked", chunk=16).iterations[0]

        counts = {
            method: [int(iterations(method, elman_params(16, 4, gain))) for gain in (0.9, 1.2, 1.5, 2.0)]
            for method in ("newton", "quasi", "picard")
        }
        assert all(exact <= rough / 4 for exact, rough in zip(counts["newton"][:3], counts["quasi"][:3], strict=True))
        assert all(exact <= none / 4 for exact, none in zip(counts["newton"][:3], counts["picard"][:3], strict=True))
        assert counts["newton"][3] > 1.5 * counts["newton"][2] > 1.5 * counts["newton"][1]


def test_memory_of_the_gradient_does_not_grow_with_iterations():
    x = jnp.zeros((2, 64, 8))
    params = lstm_params(8, 8)

    def temporary(iterations):
        solver = Solver(iterations=iterations)

        def loss(params, x):
            return newton_solve(lstm(8), params, x, solver=solver, impl="chunked", chunk=8).outputs.sum()

        return jit(jax.grad(loss)).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    two, eight = temporary(2), temporary(8)
    assert two > 0
    assert abs(two - eight) <= 0.05 * two

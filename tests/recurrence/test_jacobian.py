"""Jacobians of cells: automatic, explicit and full ones agree; a false declaration is found."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.recurrence.jacobian import as_matrix, check_cell, linearized, linearized_diagonal
from paperlab.recurrence.newton import newton_solve
from paperlab.recurrence.newton_cell import Cell
from tests.recurrence.cells import elman, elman_params, gru, gru_params, lstm, lstm_params
from tests.recurrence.laws import QUICK

S, DIN = 4, 3
CELLS = {
    "gru": (gru(S), gru_params(S, DIN)),
    "gru explicit": (gru(S, explicit=True), gru_params(S, DIN)),
    "lstm": (lstm(S), lstm_params(S, DIN)),
    "lstm explicit": (lstm(S, explicit=True), lstm_params(S, DIN)),
    "elman": (elman(S), elman_params(S, DIN)),
    "elman heads": (elman(S, "heads"), {**elman_params(S, DIN), "W": np.random.default_rng(0).normal(size=(2, 2, 2))}),
}


def positions(cell, count=3):
    random = np.random.default_rng(5)
    return jnp.asarray(random.standard_normal((count, DIN))), jnp.asarray(random.standard_normal((count, *cell.state)))


@pytest.mark.parametrize("name", CELLS)
def test_equals_the_full_derivative(name):
    with jax.enable_x64(True):
        cell, params = CELLS[name]
        x, h = positions(cell)
        size = int(np.prod(cell.state))

        @partial(jax.jit, compiler_options=QUICK)
        def derivatives(x, h):
            full = jax.vmap(jax.jacfwd(lambda h, x: cell.step(params, x, h)))(h, x).reshape(-1, size, size)
            after, A = linearized(cell, params, x, h)
            same, diagonal = linearized_diagonal(cell, params, x, h)
            return full, after, as_matrix(cell.structure, A), same, diagonal, cell.step(params, x, h)

        full, after, A, same, diagonal, stepped = derivatives(x, h)
        np.testing.assert_allclose(A, full, rtol=0, atol=1e-10)
        np.testing.assert_allclose(after, stepped, rtol=0, atol=1e-15)
        want = np.diagonal(full, axis1=1, axis2=2).reshape(h.shape)
        np.testing.assert_allclose(diagonal, want, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(same, after)


@pytest.mark.parametrize("name", ["gru explicit", "lstm explicit"])
def test_formulas_equal_central_differences(name):
    with jax.enable_x64(True):
        cell, params = CELLS[name]
        x, h = positions(cell, 1)
        steps = 1e-5 * np.eye(h.size).reshape(-1, *cell.state)
        x = jnp.broadcast_to(x, (h.size, DIN))
        step = jax.jit(cell.step, compiler_options=QUICK)
        slope = (step(params, x, h + steps) - step(params, x, h - steps)) / 2e-5
        matrix = as_matrix(cell.structure, jax.jit(cell.jacobian, compiler_options=QUICK)(params, x[:1], h))[0]
        np.testing.assert_allclose(slope.reshape(h.size, h.size).T, matrix, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", CELLS)
def test_true_declarations_pass(name):
    cell, params = CELLS[name]
    x, h = positions(cell)
    assert check_cell(cell, params, x) is None
    assert check_cell(cell, params, x[None], h[None], samples=2, seed=1) is None


def test_a_cell_that_mixes_more_than_it_says_is_named():
    cell, params = CELLS["elman"]
    x, _ = positions(cell)
    false = replace(cell, structure="diagonal", diagonal=None)
    with pytest.raises(ValueError, match=r"structure='diagonal' is not true .* state\[\d\] depends on state\[\d\]"):
        check_cell(false, params, x)
    with pytest.raises(ValueError, match=r"'heads' is not true .* state\[., .\] depends .* with a flat state"):
        check_cell(Cell(lambda p, x, h: h + h[..., ::-1, :], (2, 2), "heads"), None, x)
    with pytest.raises(ValueError, match="'blocks' is not true"):
        check_cell(Cell(lambda p, x, h: h + h[..., ::-1], (2, 3), "blocks"), None, x)


def test_an_explicit_jacobian_that_is_wrong_is_named():
    cell, params = CELLS["gru explicit"]
    x, _ = positions(cell)
    with pytest.raises(ValueError, match=r"cell\.jacobian is not the derivative"):
        check_cell(replace(cell, jacobian=lambda *a: 1.01 * CELLS["gru explicit"][0].jacobian(*a)), params, x)
    with pytest.raises(ValueError, match=r"cell\.diagonal is not the derivative"):
        check_cell(replace(cell, diagonal=lambda p, x, h: h), params, x)
    with pytest.raises(ValueError, match=r"cell\.jacobian must return \[..., 4\]"):
        check_cell(replace(cell, jacobian=lambda p, x, h: h[..., None]), params, x)
    with pytest.raises(ValueError, match=r"cell\.step must return"):
        check_cell(Cell(lambda p, x, h: h[..., :2], (4,)), params, x)
    with pytest.raises(ValueError, match="not finite"):
        check_cell(Cell(lambda p, x, h: jnp.sqrt(h - 100), (4,), "diagonal"), params, x)


def test_the_solver_checks_when_asked():
    cell, params = CELLS["elman"]
    x = jnp.zeros((2, 5, DIN))
    false = replace(cell, structure="diagonal", diagonal=None)
    with pytest.raises(ValueError, match="is not true"):
        newton_solve(false, params, x, impl="sequential", check=True)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda x: newton_solve(cell, params, x, impl="sequential", check=True).last)(x)
    assert newton_solve(cell, params, x, impl="sequential", check=True).last.shape == (2, S)

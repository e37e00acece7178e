"""ParaRNN's known answers (golden/pararnn/README.md): trajectories, Newton iterates, Jacobians, adjoints, gradients."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.recurrence.jacobian import linearized
from paperlab.recurrence.newton import newton_iterates, newton_solve
from paperlab.recurrence.newton_cell import Solver
from paperlab.recurrence.newton_loop import adjoint
from paperlab.recurrence.newton_system import Reduction, System, entering
from tests.golden.folder import FOLDER, needs_known_answers
from tests.recurrence.cells import elman, gru, lstm
from tests.recurrence.laws import QUICK

ROOT = FOLDER / "pararnn"
CASES = json.loads((ROOT / "cases.json").read_text()) if ROOT.is_dir() else {}
CELLS = [name for name, case in CASES.items() if case["kind"].endswith("_cell")]
ITERATIONS = 16


def cell_of(options):
    S = options["state_dim"]
    if options["cell"] == "elman":
        return elman(S, zero_guess=options["initial_guess"] == "zeros")
    return gru(S, options["candidate_nonlinearity"]) if options["cell"] == "gru" else lstm(S)


@cache
def answers(name):
    """(what we compute, what is known), under the known names."""
    case = CASES[name]
    cell = cell_of(case["options"])
    with np.load(ROOT / name) as file, jax.enable_x64(True):
        known = {key: file[key] for key in file.files}
        found = run(cell, {key: known[key] for key in case["params"]}, known["x"], known["w"])
        return {key: np.asarray(value) for key, value in found.items()}, known


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(cell, params, x, w):
    """The solution by Newton iteration to a tolerance, at most T times; all else at it."""
    exact = Solver(tolerance=1e-13)

    def loss(params, x):
        found = newton_solve(cell, params, x, solver=exact, impl="associative")
        return jnp.sum(w * found.outputs), found

    (grad, dx), found = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    iterates, residuals = newton_iterates(cell, params, x, iterations=ITERATIONS)
    h0 = jnp.zeros_like(found.last)
    before = entering(cell, System(params, x, h0, None, None), found.states)
    _, vjp = jax.vjp(cell.output or (lambda states: states), found.states)
    flat = (*x.shape[:2], -1)
    J = linearized(cell, params, x, before)[1]
    if cell.structure == "blocks":  # rows (variable, channel), columns variables
        J = jnp.moveaxis(J, 3, 4).reshape(*x.shape[:2], -1, cell.state[0])
    l = adjoint(cell, Reduction("associative", 64), System(params, x, h0, None, None), found.states, vjp(w)[0])
    return {
        "y_seq": found.outputs,
        "state_seq": found.states.reshape(flat),
        "sequential": newton_solve(cell, params, x, impl="sequential").states.reshape(flat),
        "guess": iterates[0].reshape(flat),
        "newton": iterates[1:5].reshape(4, *flat),
        "iterates": iterates.reshape(ITERATIONS + 1, *flat),
        "residuals": residuals.max(-1),
        "iterations": found.iterations,
        "converged": found.converged,
        "jac": J,
        "adjoint": l.reshape(flat),
        "grad_x": dx,
        **{f"grad_{key}": value for key, value in grad.items()},
    }


@pytest.mark.parametrize("name", CELLS)
def test_known_answers(name):
    case = CASES[name]
    got, want = answers(name)
    compared = {"newton": case["options"]["newton_iterates_compared"]}
    assert set(case["outputs"]) <= set(got)
    for key, tolerance in case["outputs"].items():
        first = slice(compared.get(key))
        np.testing.assert_allclose(got[key][first], want[key][first], **tolerance, err_msg=key)


@pytest.mark.parametrize("name", CELLS)
def test_convergence_is_the_known_one(name):
    options = CASES[name]["options"]
    got, want = answers(name)
    residuals = got["residuals"]
    least, most = options["residual_after_3_min"], options["residual_after_3_max"]
    assert least is None or residuals[3] > least
    assert most is None or residuals[3] < most
    count, slack = options["iterations_to_1e-10"], options["iterations_slack"]
    assert got["converged"].all()
    if count is None:
        assert np.all(residuals > 1e-10)
    elif count <= ITERATIONS:
        assert abs(int(np.argmax(residuals < 1e-10)) - count) <= slack
        easy = min(len(want["resnorm"]), 4)
        np.testing.assert_allclose(residuals[:easy], want["resnorm"][:easy], rtol=1e-6, atol=1e-9)
    else:  # the tolerance here is a little harder to meet than 1e-10
        assert abs(got["iterations"].max() - count) <= slack + 2


@pytest.mark.parametrize("name", CELLS)
def test_iterate_k_is_exact_on_its_prefix(name):
    """However badly the rest diverges: the hard cells and the chaotic one are among these."""
    offset = CASES[name]["options"]["newton_exact_prefix_offset"]
    got, _ = answers(name)
    for k in range(ITERATIONS + 1):
        np.testing.assert_allclose(
            got["iterates"][k][:, : k + offset], got["sequential"][:, : k + offset], rtol=0, atol=1e-9
        )
    assert got["iterates"].shape[2] > ITERATIONS


@needs_known_answers("pararnn")
def test_the_chaotic_cell_explodes_on_its_way():
    got, want = answers("elman_dense_chaotic_L64.npz")
    assert got["residuals"].max() > 1e15
    np.testing.assert_allclose(got["residuals"][:2], want["resnorm"][:2], rtol=1e-3)

"""ParaRNN's known answers (golden/pararnn/README.md) for the fused solvers; their data may not be shipped, so they are read from
the folder in PAPERLAB_GOLDEN, or beside the checkout, where it is there."""

import json
import os
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.newton import ChunkedConfig, TPUConfig, reference
from tests.kernels_pallas.newton_cases import CELLS, OPS, compiled

FOLDER = Path(os.environ.get("PAPERLAB_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")) / "pararnn"
CASES = json.loads((FOLDER / "cases.json").read_text()) if FOLDER.is_dir() else {}
NAMES = [
    name
    for name, case in CASES.items()
    if case["kind"] in ("gru_cell", "lstm_cell") and case["options"]["candidate_nonlinearity"] == "tanh"
]
CONFIG = {"chunked": ChunkedConfig(32), "interpret": TPUConfig(32, 8, 128)}


@cache
def known(name):
    with np.load(FOLDER / name) as file:
        return {key: file[key] for key in file.files}


def gates(params, x):
    """B x + b [..., 3, S]; B [heads, in / heads, 3, S / heads] is block-diagonal over the heads."""
    H, width = params["B"].shape[:2]
    fed = jnp.einsum("...hi,higj->...ghj", x.reshape(*x.shape[:-1], H, width), params["B"])
    return fed.reshape(*x.shape[:-1], 3, -1) + params["b"]


def run(cell, impl, iterations, params, x, w):
    """(states as the files hold them, gradients of sum(w * y) by the files' names)."""

    def loss(params, x):
        weights = (params["A"], params["C"]) if cell == "lstm" else (params["A"],)
        states, _ = OPS[cell](gates(params, x), *weights, iterations=iterations, impl=impl, config=CONFIG[impl])
        states = jax.tree.leaves(states)
        return jnp.sum(w * states[-1]), jnp.concatenate(states, axis=-1)

    (d_params, d_x), states = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return states, {"grad_x": d_x, **{f"grad_{key}": value for key, value in d_params.items()}}


@pytest.mark.parametrize("impl", CONFIG)
@pytest.mark.parametrize("name", NAMES)
def test_states_and_gradients_are_the_known_ones(name, impl):
    """The chunked form in float64 to the files' tolerances, the kernel in float32; also where Newton takes 32 steps in a tile."""
    case, answers = CASES[name], known(name)
    cell, wide = case["options"]["cell"], impl == "chunked"
    iterations = 8 if case["options"]["iterations_to_1e-10"] else 32
    with jax.enable_x64(wide):
        kind = np.float64 if wide else np.float32
        given = [{key: answers[key].astype(kind) for key in case["params"]}, *(answers[k].astype(kind) for k in "xw")]
        states, gradients = compiled(partial(run, cell, impl, iterations))(*given)
    assert states.dtype == kind
    for key, value in {"state_seq": states, **gradients}.items():
        largest = np.abs(answers[key]).max()
        rounding = 2e-5 if iterations == 8 else 3e-3  # the hard ones amplify it, step by step in float32 as well
        tolerance = case["outputs"][key] if wide else {"rtol": 0, "atol": rounding * max(1, largest)}
        np.testing.assert_allclose(value, answers[key], **tolerance, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_guess_iterates_and_jacobians_are_the_known_ones(name):
    case, answers = CASES[name], known(name)
    cell, K = CELLS[case["options"]["cell"]], CELLS[case["options"]["cell"]].states
    with jax.enable_x64(True):
        x = gates({key: jnp.asarray(answers[key]) for key in ("B", "b")}, jnp.asarray(answers["x"]))
        w = tuple(jnp.asarray(row) for key in ("A", "C")[:K] for row in answers[key])
        start = tuple(jnp.zeros_like(x[:, 0, 0]) for _ in range(K))
        iterate = compiled(partial(reference.newton, cell), static_argnums=3)
        for k in range(1 + case["options"]["newton_iterates_compared"]):
            wanted = answers["newton"][k - 1] if k else answers["guess"]
            got = np.concatenate(iterate(x, w, start, k), axis=-1)
            np.testing.assert_allclose(got, wanted, **case["outputs"]["newton" if k else "guess"])
        states = tuple(jnp.asarray(part) for part in np.split(answers["state_seq"], K, axis=-1))
        J = cell.linearized(reference.split(x), w, reference.shifted(start, states))[1]
    rows = np.concatenate([np.stack(row, axis=-1) for row in J], axis=2)
    np.testing.assert_allclose(rows.reshape(answers["jac"].shape), answers["jac"], **case["outputs"]["jac"])

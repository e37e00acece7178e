"""Rows of the law table: nonlinear cells, solved over the whole sequence."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from paperlab.recurrence.newton import newton_solve
from paperlab.recurrence.newton_cell import Solver
from tests.recurrence.cells import elman, elman_params, gru, gru_params, lstm, lstm_params
from tests.recurrence.laws import Law

B, S, DIN = 2, 4, 3


def draw(T, seed, dtype, *, cell, params):
    random = np.random.default_rng(seed)
    x, h0 = random.standard_normal((B, T, DIN)), 0.5 * random.standard_normal((B, *cell.state))
    return {name: jnp.asarray(array, dtype) for name, array in {**params(seed), "x": x, "h0": h0}.items()}


def run(args, *, cell, **options):
    params = {name: array for name, array in args.items() if name not in ("x", "h0")}
    found = newton_solve(cell, params, args["x"], args["h0"], solver=Solver(iterations=6), chunk=16, **options)
    return found.outputs, found.last


def law(name, cell, params, impls, lengths):
    return Law(
        f"newton/{name}",
        partial(draw, cell=cell, params=params),
        partial(run, cell=cell),
        impls,
        ("x",),
        lengths=lengths,
    )


LAWS = [
    law("gru", gru(S), lambda seed: gru_params(S, DIN, seed=seed), ("associative", "chunked"), (1, 2, 65, 1000)),
    law("lstm", lstm(S), lambda seed: lstm_params(S, DIN, seed=seed), ("chunked",), (3, 64)),
    law("elman", elman(S), lambda seed: elman_params(S, DIN, 0.5, seed), ("associative",), (1, 33)),
]

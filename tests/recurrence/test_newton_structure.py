"""Implementations of block_scan and newton_solve are what their names say, and lower for accelerators."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import export

from paperlab.recurrence.block import block_scan
from paperlab.recurrence.newton import newton_solve
from paperlab.recurrence.newton_cell import Solver
from tests.recurrence.cells import elman, elman_params, gru, gru_params, lstm, lstm_params

T, CHUNK, ITERATIONS = 256, 32, 5
CELLS = {
    "gru": (gru(4), gru_params(4, 3)),
    "lstm": (lstm(4), lstm_params(4, 3)),
    "elman": (elman(4), elman_params(4, 3)),
}


def equations(jaxpr):
    """All equations, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def loops(function, *arrays):
    """(lengths of all scans, how often each; number of while loops)."""
    found = list(equations(jax.make_jaxpr(function)(*arrays).jaxpr))
    lengths = [e.params["length"] for e in found if e.primitive.name == "scan"]
    return {n: lengths.count(n) for n in lengths}, sum(e.primitive.name == "while" for e in found)


@pytest.mark.parametrize("structure", ["blocks", "heads", "dense"])
@pytest.mark.parametrize(("impl", "scans"), [("sequential", {T: 2}), ("chunked", {T // CHUNK: 2}), ("associative", {})])
def test_block_scan_forward_and_backward(impl, scans, structure):
    shape = (2, 3) if structure != "dense" else (3,)
    square = (2, 2, 3) if structure == "blocks" else (*shape, 3)

    def loss(A, b):
        return jnp.sum(block_scan(A, b, structure=structure, impl=impl, chunk=CHUNK)[0] ** 2)

    assert loops(jax.grad(loss, (0, 1)), jnp.zeros((T, *square)), jnp.zeros((T, *shape))) == (scans, 0)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("impl", "forward", "both"),
    [
        ("sequential", {T: 1}, {T: 2}),
        ("chunked", {ITERATIONS: 1, T // CHUNK: 1}, {ITERATIONS: 1, T // CHUNK: 2}),
        ("associative", {ITERATIONS: 1}, {ITERATIONS: 1}),
    ],
)
def test_newton_runs_one_scan_an_iteration_and_one_backward(name, impl, forward, both):
    cell, params = CELLS[name]

    def loss(params, x):
        solver = Solver(iterations=ITERATIONS)
        return jnp.sum(newton_solve(cell, params, x, solver=solver, impl=impl, chunk=CHUNK).outputs ** 2)

    assert loops(loss, params, jnp.zeros((2, T, 3))) == (forward, 0)
    assert loops(jax.grad(loss), params, jnp.zeros((2, T, 3))) == (both, 0)


def test_a_tolerance_is_a_while_loop_and_windows_are_a_scan():
    cell, params = CELLS["gru"]

    def run(solver, x):
        return newton_solve(cell, params, x, solver=solver, impl="associative").outputs

    x = jnp.zeros((2, T, 3))
    assert loops(partial(run, Solver(tolerance=1e-5)), x) == ({}, 1)
    assert loops(partial(run, Solver(iterations=2, window=16)), x) == ({T // 16: 1, 2: 1}, 0)


def test_picard_and_quasi_on_a_dense_cell_hold_no_matrix_per_step():
    """With a diagonal of its own the dense cell never makes its [T, d, d] Jacobian."""
    d = 32
    cell, params = elman(d), elman_params(d, 3)

    def largest(method):
        def run(x):
            return newton_solve(cell, params, x, solver=Solver(method), impl="associative").outputs

        jaxpr = jax.make_jaxpr(run)(jnp.zeros((1, T, 3))).jaxpr
        return max(v.aval.size for e in equations(jaxpr) for v in e.outvars)

    assert largest("picard") <= T * d
    assert largest("quasi") <= T * d
    assert largest("quasi_elk") <= T * d
    assert largest("newton") >= T * d * d


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("name", "method"), [("lstm", "newton"), ("elman", "newton"), ("elman", "elk")])
def test_lowers_for_accelerators(platform, name, method):
    cell, params = CELLS[name]

    def loss(params, x):
        solver = Solver(method, tolerance=1e-5, iterations=8)
        return newton_solve(cell, params, x, solver=solver, impl="associative").outputs.astype(jnp.float32).sum()

    x = jnp.zeros((2, 40, 3), jnp.bfloat16)
    assert export.export(jax.jit(jax.grad(loss)), platforms=[platform])(params, x).platforms == (platform,)

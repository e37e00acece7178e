"""impl="pallas": any layout reaches the kernels, which are run here by what stands in for them on a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.recurrence import block_scan, complex_scan, kernels, linear_scan, newton_solve
from paperlab.recurrence.grid import Edges, Gates, grid_memory
from paperlab.recurrence.newton_cell import Solver
from tests.recurrence.cells import gru, gru_params, lstm, lstm_params

QUICK = {"xla_backend_optimization_level": 0}
SEGMENTS = jnp.array([[0, 0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 2, 2]])

# b, a, time axis, segments, in reverse
LAYOUTS = {
    "batch first": ((2, 7, 40), (2, 7, 40), 1, True, False),
    "time first": ((7, 2, 3), (7, 2, 3), 0, False, False),
    "heads between": ((2, 4, 7, 33), (2, 4, 7, 33), 2, False, True),
    "heads inside": ((2, 7, 4, 10), (2, 7, 4, 1), 1, True, False),
    "narrow": ((2, 7, 3), (2, 7, 3), 1, True, True),
    "time last": ((2, 5, 7), (2, 5, 7), 2, False, False),
    "the same at every step": ((2, 7, 40), (40,), 1, False, False),
    "the same in segments": ((2, 7, 40), (40,), 1, True, False),
    "the same, one a sequence": ((2, 7, 40), (2, 1, 40), 1, False, True),
    "one step": ((2, 1, 40), (2, 1, 40), 1, False, False),
}


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(kernels, "IMPL", "chunked")


def draw(shape, seed):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-0.6, maxval=0.6)


def assert_agree(scan, arguments):
    """Values and gradients by impl="pallas" and by definition, of every leaf of `arguments`."""

    def value(impl, arguments):
        out = scan(*arguments, impl=impl)
        return sum((jnp.cos(i + x) * x).sum() for i, x in enumerate(jax.tree.leaves(out))), out

    def both(impl):
        f = jax.jit(jax.value_and_grad(partial(value, impl), has_aux=True), compiler_options=QUICK)
        return f(arguments)

    for got, want in zip(jax.tree.leaves(both("pallas")), jax.tree.leaves(both("sequential")), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=3e-5, rtol=1e-5)


def options_of(time, segmented, reverse):
    return {"axis": time, "reverse": reverse, "segment_ids": SEGMENTS if segmented else None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_in_any_layout(stand_in, layout):
    b, a, time, *how = LAYOUTS[layout]
    rest = b[:time] + b[time + 1 :]
    assert_agree(partial(linear_scan, **options_of(time, *how)), (draw(a, 1), draw(b, 2), draw(rest, 3)))


@pytest.mark.parametrize("layout", ["heads inside", "the same at every step", "narrow"])
def test_complex_numbers(stand_in, layout):
    b, a, time, *how = LAYOUTS[layout]
    rest = b[:time] + b[time + 1 :]
    pairs = tuple((draw(shape, seed), draw(shape, seed + 1)) for seed, shape in ((1, a), (3, b), (5, rest)))
    assert_agree(partial(complex_scan, **options_of(time, *how)), pairs)


@pytest.mark.parametrize(
    ("b", "A", "time", "segmented", "reverse"),
    [
        ((2, 7, 2, 40), (2, 7, 2, 2, 40), 1, True, False),
        ((2, 7, 3, 2, 5), (2, 7, 3, 2, 2, 5), 1, True, True),
        ((7, 2, 2, 3), (2, 2, 3), 0, False, False),
        ((2, 3, 7, 2, 4), (2, 3, 1, 2, 2, 4), 2, False, True),
    ],
)
def test_blocks_of_two(stand_in, b, A, time, segmented, reverse):
    rest = b[:time] + b[time + 1 :]
    scan = partial(block_scan, structure="blocks", **options_of(time, segmented, reverse))
    assert_agree(scan, (draw(A, 1), draw(b, 2), draw(rest, 3)))


def test_the_kernel_itself(monkeypatch):
    monkeypatch.setattr(kernels, "IMPL", "interpret")
    a, b = draw((2, 7, 40), 1), draw((2, 7, 40), 2)
    options = {"segment_ids": SEGMENTS, "reverse": True}
    got, want = (linear_scan(a, b, impl=impl, **options) for impl in ("pallas", "sequential"))
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], atol=1e-6)


@pytest.mark.parametrize("method", ["newton", "quasi"])
@pytest.mark.parametrize("cell", [gru, lstm])
def test_newton_steps_by_the_kernels(stand_in, cell, method):
    width, size = 3, 2
    params = (gru_params if cell is gru else lstm_params)(width, size, seed=1)
    x = draw((2, 7, size), 2)

    def states(x, impl):
        solver = Solver(method, iterations=7)
        return newton_solve(cell(width), params, x, segment_ids=SEGMENTS, solver=solver, impl=impl).states

    def both(impl):
        return jax.value_and_grad(lambda x: jnp.cos(states(x, impl)).sum())(x)

    for got, want in zip(both("pallas"), both("associative"), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_grids_by_the_kernel(stand_in, lead):
    X, Y, DK, DV = 5, 3, 4, 2
    q, k, v = (draw((*lead, X, Y, D, 1), seed) for seed, D in ((1, DK), (2, DK), (3, DV)))
    ones = ((1, 1, 1), (1, 1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1, 1), (1, 1, 1))
    gates = Gates(*(draw((X, Y, *shape), 4 + i) for i, shape in enumerate(ones)))._replace(dl=None)
    direct = draw((*lead, X, Y, 1, 1, 1, 1), 20)
    entering = Edges(draw((*lead, Y, DK, DV, 1), 21), draw((*lead, X, DK, DV, 1), 22))
    for border in (None, entering):
        got, want = (grid_memory(q, k, v, gates, direct, entering=border, impl=impl) for impl in ("pallas", "nodes"))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    two = jnp.zeros((X, Y, 2, 1, 1))
    with pytest.raises(ValueError, match="only with ones"):
        grid_memory(q, k, v, gates._replace(mark_l=two, mark_u=two), impl="pallas")


def test_where_there_is_no_kernel_the_reason_is_said():
    b = jnp.zeros((2, 7, 2, 4))
    A = jnp.zeros((2, 7, 2, 2, 4))
    with pytest.raises(ValueError, match="no kernel for 'cpu'"):
        block_scan(A, b, impl="pallas")
    with pytest.raises(ValueError, match="no kernel for 'cpu'"):
        complex_scan((b, b), (b, b), impl="pallas")
    with pytest.raises(ValueError, match="only for blocks of two"):
        block_scan(jnp.zeros((2, 7, 3, 3, 4)), jnp.zeros((2, 7, 3, 4)), impl="pallas")
    with pytest.raises(ValueError, match="only for blocks of two"):
        block_scan(jnp.zeros((2, 7, 4, 4)), jnp.zeros((2, 7, 4)), structure="dense", impl="pallas")

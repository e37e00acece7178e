"""The whole-sequence solver: what it finds, what it refuses to pass off as found, what its parts are made of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from paperlab.recurrence import linear_scan
from paperlab.recurrence.newton import newton_iterates, newton_solve
from paperlab.recurrence.newton_cell import Cell, Solver
from tests.recurrence.cells import elman, elman_params, gru, gru_params, lstm, lstm_params
from tests.recurrence.laws import QUICK

S, DIN = 4, 3
PARAMS = gru_params(S, DIN)
jit = partial(jax.jit, compiler_options=QUICK)


def inputs(T, cell=None, seed=0, B=2):
    random = np.random.default_rng(seed)
    x = random.standard_normal((B, T, DIN))
    return x if cell is None else (x, random.standard_normal((B, *cell.state)))


def sequential(cell, params, x, h0=None, **options):
    return jit(lambda params, x, h0: newton_solve(cell, params, x, h0, impl="sequential", **options))(params, x, h0)


def parallel(cell, params, x, h0=None, *, solver=None, impl="associative", **options):
    def run(params, x, h0):
        return newton_solve(cell, params, x, h0, solver=solver, impl=impl, **options)

    return jit(run)(params, x, h0)


METHODS = {
    "quasi": Solver("quasi", tolerance=1e-11),
    "picard": Solver("picard", tolerance=1e-11),
    "damped": Solver(damping=0.7, tolerance=1e-11, iterations=60),
    "elk": Solver("elk", trust=0.1, tolerance=1e-11, iterations=60),
    "elk, filter alone": Solver("elk", trust=0.1, smooth=False, tolerance=1e-11, iterations=60),
    "quasi_elk": Solver("quasi_elk", trust=0.1, tolerance=1e-11, iterations=60),
    "windows": Solver(tolerance=1e-11, window=6),
    "relative": Solver(relative=1e-10),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_trajectory(method):
    with jax.enable_x64(True):
        cell, params = elman(S), elman_params(S, DIN, 0.7)
        x, h0 = inputs(20, cell)
        want = sequential(cell, params, x, h0)
        got = parallel(cell, params, x, h0, solver=METHODS[method])
        assert got.converged.all()
        assert np.all(got.residual <= 2e-10)
        assert np.all(got.iterations > 0)
        np.testing.assert_allclose(got.states, want.states, rtol=0, atol=1e-9)
        np.testing.assert_allclose(got.last, want.states[:, -1], rtol=0, atol=1e-9)
        assert want.converged is None
        assert np.all(want.iterations == 0)
        assert np.all(want.residual < 1e-15)


@pytest.mark.parametrize("method", ["elk", "quasi_elk"])
def test_elk_holds_small_blocks_and_channels_too(method):
    with jax.enable_x64(True):
        cell, params = lstm(S), lstm_params(S, DIN)
        x, h0 = inputs(12, cell)
        got = parallel(cell, params, x, h0, solver=Solver(method, trust=0.1, tolerance=1e-10, iterations=60))
        np.testing.assert_allclose(got.outputs, sequential(cell, params, x, h0).outputs, rtol=0, atol=1e-8)
        assert got.converged.all()


def test_a_linear_cell_takes_one_iteration():
    with jax.enable_x64(True):
        cell = Cell(lambda params, x, h: params * h + x, (DIN,), "diagonal")
        x, a = inputs(30), np.array([0.9, -0.5, 1.1])
        got = parallel(cell, a, x, solver=Solver(tolerance=1e-10))
        assert np.all(got.iterations == 1)
        np.testing.assert_allclose(got.states, linear_scan(a, jnp.asarray(x), impl="sequential")[0], rtol=0, atol=1e-11)


def test_damping_applies_that_share_of_a_correction():
    """On a linear cell every iteration leaves 1 - damping of the residual."""
    with jax.enable_x64(True):
        cell = Cell(lambda params, x, h: params * h + x, (DIN,), "diagonal")
        run = partial(newton_iterates, cell, 0.5, iterations=4, solver=Solver(damping=0.75))
        _, residuals = jit(run)(inputs(12))
        np.testing.assert_allclose(residuals[1:] / residuals[:-1], 0.25, rtol=1e-9)


def test_without_recurrent_weights_gates_are_inputs():
    """GRU with A = 0: linear in the state, one iteration. LSTM with A = C = 0: c after one, (c, h) after two."""
    with jax.enable_x64(True):
        x = inputs(30)
        gated = {**PARAMS, "A": np.zeros((3, S))}
        assert np.all(parallel(gru(S), gated, x, solver=Solver(tolerance=1e-13)).iterations == 1)
        apart = {**lstm_params(S, DIN), "A": np.zeros((3, S)), "C": np.zeros((2, S))}
        want, once = sequential(lstm(S), apart, x).states, parallel(lstm(S), apart, x, solver=Solver(iterations=1))
        np.testing.assert_allclose(once.states[..., 0, :], want[..., 0, :], rtol=0, atol=1e-12)
        assert np.abs(once.states[..., 1, :] - want[..., 1, :]).max() > 1e-3
        assert np.all(parallel(lstm(S), apart, x, solver=Solver(tolerance=1e-13)).iterations == 2)


def test_an_unconverged_sequence_is_nan_and_so_is_its_gradient():
    """The quiet sequence of the batch is solved, the wild one is not."""
    with jax.enable_x64(True):
        cell, params = elman(16), {**elman_params(16, DIN, 4.0), "U": np.random.default_rng(1).normal(size=(16, DIN))}
        x = inputs(40, B=2) * np.array([0.0, 1.0])[:, None, None]
        solver = Solver(tolerance=1e-10, iterations=3)

        def loss(x):
            found = newton_solve(cell, params, x, solver=solver, impl="associative")
            return found.outputs.sum(), found

        (value, found), gradient = jit(jax.value_and_grad(loss, has_aux=True))(x)
        np.testing.assert_array_equal(found.converged, [True, False])
        np.testing.assert_array_equal(found.iterations, [0, 3])
        assert np.isfinite(found.states[0]).all()
        assert np.isnan(found.states[1]).all()
        assert np.isnan(found.last[1]).all()
        assert np.isnan(found.outputs[1]).all()
        assert found.residual[1] > 1e-3
        assert np.isnan(value)
        assert np.isfinite(gradient[0]).all()
        assert np.isnan(gradient[1]).all()


def test_an_unconverged_sequence_is_reported_when_asked():
    cell, params, x = elman(S), elman_params(S, DIN, 3.0), jnp.asarray(inputs(30), jnp.float32)
    solver = Solver(tolerance=1e-6, iterations=1, failure="check")

    def run(x):
        return newton_solve(cell, params, x, solver=solver, impl="associative").last

    error, _ = jit(checkify.checkify(run))(x)
    with pytest.raises(checkify.JaxRuntimeError, match="2 of 2 sequences missed the tolerance"):
        error.throw()
    error, last = jit(checkify.checkify(run))(x[:, :1])  # the guess is exact at the first step
    assert error.get() is None
    np.testing.assert_allclose(last, sequential(cell, params, x[:, :1]).last, rtol=1e-6)
    with pytest.raises(ValueError, match="not functionalized"):
        jit(run)(x)


def test_bad_values_end_the_search_at_once():
    x = inputs(50)
    x[1, 20] = np.nan
    found = parallel(gru(S), PARAMS, x, solver=Solver(tolerance=1e-5))
    np.testing.assert_array_equal(found.converged, [True, False])
    assert np.all(found.iterations <= 5)
    assert np.isnan(found.residual[1])
    assert np.isnan(found.states[1]).all()
    assert np.isfinite(found.states[0]).all()


def test_overflow_on_the_way_does_not_last():
    """h' = 4 h (1 - h): from the guess Newton's iterates leave the range of float64, yet T iterations always suffice."""
    with jax.enable_x64(True):
        cell = Cell(lambda params, x, h: 4.0 * h * (1.0 - h) + x, (1,), "diagonal")
        x, h0 = np.zeros((1, 30, 1)), np.full((1, 1), 0.3)
        _, residuals = jit(partial(newton_iterates, cell, None, iterations=30))(x, h0)
        assert not np.isfinite(residuals).all()
        found = parallel(cell, None, x, h0, solver=Solver(iterations=30))
        np.testing.assert_allclose(found.states, sequential(cell, None, x, h0).states, rtol=0, atol=1e-5)


def test_padding_changes_nothing():
    with jax.enable_x64(True):
        cell, params = lstm(S), lstm_params(S, DIN)
        x, h0 = inputs(15, cell)
        mask = np.arange(15) < np.array([15, 9])[:, None]
        solver = Solver(iterations=6)

        def loss(x, h0, impl="associative"):
            found = newton_solve(cell, params, x, h0, solver=solver, mask=jnp.asarray(mask), impl=impl)
            return jnp.sum(found.states * mask[..., None, None]) + jnp.sum(jnp.cos(found.last)), found

        (_, got), gradients = jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, h0)
        (_, want), wanted = jit(jax.value_and_grad(partial(loss, impl="sequential"), (0, 1), has_aux=True))(x, h0)
        short = sequential(cell, params, x[1:, :9], h0[1:])
        np.testing.assert_allclose(got.states, want.states, rtol=0, atol=1e-11)
        np.testing.assert_allclose(got.last[1:], short.last, rtol=0, atol=1e-11)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-10), gradients, wanted)
        assert np.all(gradients[0][1, 9:] == 0)


@pytest.mark.parametrize("options", [{}, {"segments": True}, {"mask": True}, {"reverse": True}])
def test_windows_equal_the_whole(options):
    """A width that does not divide the length, fixed count in every window."""
    with jax.enable_x64(True):
        cell, (x, h0) = gru(S), inputs(23, gru(S))
        given = {"reverse": options.get("reverse", False)}
        if "segments" in options:
            given["segment_ids"] = jnp.asarray(np.repeat([0, 1, 2], [4, 12, 7])[None].repeat(2, 0))
        if "mask" in options:
            given["mask"] = jnp.arange(23)[None] < jnp.array([[23], [11]])
        solver = Solver(iterations=5, window=5)

        def loss(params, x, h0, impl):
            found = newton_solve(cell, params, x, h0, solver=solver, impl=impl, **given)
            return jnp.sum(jnp.sin(found.states)), found.last

        run = jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
        got, want = run(PARAMS, x, h0, "associative"), run(PARAMS, x, h0, "sequential")
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-10), got, want)


def test_what_fills_the_last_window_does_not_count():
    """A step that is not finite for the zeros that are filled in."""
    cell = Cell(lambda params, x, h: jnp.tanh(h) / x, (1,), "diagonal")
    x = jnp.full((1, 7, 1), 1.5)
    found = parallel(cell, None, x, jnp.ones((1, 1)), solver=Solver(tolerance=1e-6, window=4))
    assert found.converged.all()
    np.testing.assert_allclose(found.last, sequential(cell, None, x, jnp.ones((1, 1))).last, rtol=1e-5)


def test_one_window_that_fails_fails_its_sequence():
    with jax.enable_x64(True):
        cell, params = elman(16), elman_params(16, DIN, 4.0)
        x = inputs(40) * (np.arange(40) >= 20)[None, :, None]
        x[0] = 0
        found = parallel(cell, params, x, solver=Solver(tolerance=1e-10, iterations=3, window=10))
        np.testing.assert_array_equal(found.converged, [True, False])
        np.testing.assert_array_equal(found.iterations, [0, 3])
        assert np.isnan(found.states[1]).all()
        assert np.all(found.states[0] == 0)


def test_a_warm_start_saves_iterations_and_has_no_gradient():
    with jax.enable_x64(True):
        x = inputs(30)
        solution = sequential(gru(S), PARAMS, x).states
        near = solution + 1e-4
        found = parallel(gru(S), PARAMS, x, solver=Solver(tolerance=1e-12), guess=near)
        assert np.all(found.iterations <= 2)
        np.testing.assert_allclose(found.states, solution, rtol=0, atol=1e-12)

        def loss(guess):
            return newton_solve(gru(S), PARAMS, jnp.asarray(x), guess=guess, impl="associative").states.sum()

        assert np.all(jit(jax.grad(loss))(near) == 0)


def _loss(params, x, impl, solver):
    return jnp.sum(newton_solve(gru(S), params, x, solver=solver, impl=impl).states ** 2)


def test_second_derivatives_agree_with_the_sequential_ones():
    with jax.enable_x64(True):

        def slope(params, x, impl, solver):
            gradient = jax.grad(_loss)(params, x, impl, solver)
            return jnp.sum(jnp.sin(gradient["A"])) + jnp.sum(jnp.cos(gradient["B"]))

        run = jit(jax.grad(slope), static_argnums=(2, 3))
        got = run(PARAMS, inputs(7), "associative", Solver(iterations=7))
        want = run(PARAMS, inputs(7), "sequential", None)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-9), got, want)


def test_the_implicit_gradient_is_that_of_the_iterations():
    with jax.enable_x64(True):
        run = jit(jax.grad(_loss), static_argnums=(2, 3))
        unrolled = run(PARAMS, inputs(7), "associative", Solver(iterations=7, differentiate="unrolled"))
        implicit = run(PARAMS, inputs(7), "associative", Solver(iterations=7))
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-10), implicit, unrolled)
        rough = run(PARAMS, inputs(7), "associative", Solver(iterations=1))
        assert np.abs(rough["A"] - implicit["A"]).max() > 1e-9


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        x, h0 = inputs(9, gru(S), B=1)
        w, direction = inputs(9, seed=3, B=1).sum(-1, keepdims=True), np.random.default_rng(4).standard_normal(h0.shape)

        def loss(h0):
            found = newton_solve(gru(S), PARAMS, jnp.asarray(x), h0, solver=Solver(iterations=6), impl="associative")
            return jnp.sum(w * found.states)

        value = jit(loss)
        slope = (value(h0 + 1e-5 * direction) - value(h0 - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(jnp.sum(jit(jax.grad(loss))(h0) * direction), slope, rtol=1e-6)


def test_inputs_may_be_a_tree_with_whole_numbers():
    """Tokens and positions beside each other; the embedding table gets its gradient."""

    def step(params, x, h):
        fed = params["table"][x["token"][..., 0]] + x["place"]
        return jnp.tanh(params["a"] * h + fed)

    cell = Cell(step, (S,), "diagonal")
    params = {"table": jax.random.normal(jax.random.key(0), (5, S)), "a": 0.5}
    x = {"token": jnp.arange(12).reshape(2, 6, 1) % 5, "place": jnp.linspace(0, 1, 12).reshape(2, 6, 1)}

    def loss(params, impl):
        return newton_solve(cell, params, x, solver=Solver(iterations=6), impl=impl).outputs.sum()

    run = jit(jax.value_and_grad(loss), static_argnums=1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), run(params, "associative"), run(params, "sequential"))
    assert run(params, "associative")[1]["table"].shape == (5, S)


def test_any_number_of_batch_axes():
    x = inputs(6)
    want = sequential(gru(S), PARAMS, x)
    one = parallel(gru(S), PARAMS, x[0], solver=Solver(iterations=6))
    more = parallel(gru(S), PARAMS, x[None], solver=Solver(iterations=6), axis=2)
    np.testing.assert_allclose(one.states, want.states[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(more.states[0], want.states, rtol=0, atol=1e-6)
    assert (one.iterations.shape, more.residual.shape) == ((), (1, 2))


X = jnp.zeros((2, 5, DIN))
REFUSED = {
    "impl='fast'": {"impl": "fast"},
    "there is no kernel for 'cpu'": {"impl": "pallas"},
    "impl='pallas': method='quasi_elk'": {"impl": "pallas", "solver": Solver("quasi_elk")},
    "impl='chunked': method='elk'": {"impl": "chunked", "solver": Solver("elk")},
    "x must hold": {"x": ()},
    "x must not be empty": {"x": X[:, :0]},
    "axis=-4": {"axis": -4},
    "must share batch and time": {"x": (X, X[:, :3])},
    "h0 must be": {"h0": jnp.zeros((2, 5))},
    "guess must be": {"guess": jnp.zeros((2, 4, S))},
    "segment_ids must be": {"segment_ids": jnp.zeros((5,), int)},
    "mask must be": {"mask": jnp.ones((2, 4), bool)},
    "chunk=0": {"chunk": 0},
    "cell.step must return": {"cell": Cell(lambda params, x, h: h.sum(-1), (S,), "diagonal")},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_in_one_line(message):
    arguments = {"cell": gru(S), "x": X, "impl": "associative"} | REFUSED[message]
    with pytest.raises(ValueError, match=message) as error:
        newton_solve(arguments.pop("cell"), PARAMS, arguments.pop("x"), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("method='bfgs'", lambda: Solver("bfgs")),
        ("iterations=0", lambda: Solver(iterations=0)),
        ("window=0", lambda: Solver(window=0)),
        ("tolerance=nan", lambda: Solver(tolerance=float("nan"))),
        ("relative=-1", lambda: Solver(relative=-1)),
        ("damping=0", lambda: Solver(damping=0)),
        ("trust=0", lambda: Solver("elk", trust=0)),
        ("failure='keep'", lambda: Solver(failure="keep")),
        ("'unrolled' needs a fixed count", lambda: Solver(differentiate="unrolled", tolerance=1e-3)),
        ("structure='banded'", lambda: Cell(max, (3,), "banded")),
        (r"state=\(3,\)", lambda: Cell(max, (3,), "blocks")),
    ],
)
def test_impossible_settings_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()

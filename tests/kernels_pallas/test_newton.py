"""Newton solvers of ParaGRU and ParaLSTM: what they find, how far, and what their gradients cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.newton import ChunkedConfig, HopperConfig, TPUConfig, reference
from tests.kernels_pallas.newton_cases import CELLS, OPS, arguments, close, compiled, solved, weighted

TILE = 16
INTERPRET = {"impl": "interpret", "config": TPUConfig(TILE, 8, 128)}
CHUNKED = {"impl": "chunked", "config": ChunkedConfig(TILE)}
FORMS = {"interpret": INTERPRET, "chunked": CHUNKED}
both_cells = pytest.mark.parametrize("cell", CELLS)
both_forms = pytest.mark.parametrize("form", FORMS)


def planes(cell, arrays):
    """(x, weights, start) as the solvers' inner functions take them."""
    K = CELLS[cell].states
    x, weights, start = arrays[0], np.concatenate(arrays[1:-K]), arrays[-K:]
    return jnp.asarray(x), tuple(jnp.asarray(weights)), tuple(jnp.asarray(s) for s in start)


@both_forms
@both_cells
def test_enough_iterations_find_the_trajectory(cell, form):
    """Over several tiles, the last of them ragged, channels that fill no tile."""
    arrays = arguments(cell, 2, 41, 130)
    want, _ = solved(cell, arrays, impl="reference")
    got, residual = solved(cell, arrays, iterations=6, **FORMS[form])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert np.all(residual < 1e-6)


@both_forms
@both_cells
def test_as_many_iterations_as_positions_suffice_for_any_weights(cell, form):
    """Also where three iterations are far off, which the residual says."""
    arrays = arguments(cell, 1, 24, 8, bound=6.0)
    want, _ = solved(cell, arrays, impl="reference")
    got, residual = solved(cell, arrays, iterations=TILE, **FORMS[form])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert residual < 1e-4
    few, residual = solved(cell, arrays, iterations=2, **FORMS[form])
    assert np.abs(few - want).max() > 0.1
    assert residual > 0.1


@both_cells
def test_iterate_k_is_exact_on_its_prefix(cell):
    """k positions, and one more where the state before the first is zero, because the guess is f(0, x)."""
    for start in (True, False):
        arrays = arguments(cell, 1, TILE, 8, bound=6.0, start=start)
        want, _ = solved(cell, arrays, impl="reference")
        for k in (0, 3):
            exact = k + (not start)
            got, _ = solved(cell, arrays, iterations=k, **INTERPRET)
            np.testing.assert_allclose(got[..., :exact, :], want[..., :exact, :], rtol=0, atol=1e-5)
            assert np.abs(got - want).max() > 0.01


@both_forms
@both_cells
def test_every_tile_takes_exactly_these_newton_steps(cell, form):
    """Against the plain whole-sequence method, tile after tile, far from the solution."""
    arrays = arguments(cell, 1, 2 * TILE + 5, 8, bound=1.5)
    x, w, start = planes(cell, arrays)
    for k in (0, 2):
        last, tiles = start, []
        for first in range(0, x.shape[1], TILE):
            tiles.append(reference.newton(CELLS[cell], x[:, first : first + TILE], w, last, k))
            last = tuple(h[:, -1] for h in tiles[-1])
        want = np.stack([np.concatenate(parts, axis=1) for parts in zip(*tiles, strict=True)])
        got, residual = solved(cell, arrays, iterations=k, **FORMS[form])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
        far = reference.residual(CELLS[cell], x, w, start, tuple(jnp.asarray(want)))
        np.testing.assert_allclose(residual, far, rtol=1e-3, atol=1e-4)
        assert residual > 1e-3


@both_forms
@both_cells
def test_a_sequence_in_two_parts_is_the_sequence(cell, form):
    """To the last bit at a tile's end, for bfloat16 inputs too: the state that is handed on is float32."""
    x, *weights = arguments(cell, 1, 37, 8)[: -CELLS[cell].states]
    x = jnp.asarray(x, jnp.bfloat16)
    whole, _ = solved(cell, (x, *weights), iterations=2, **FORMS[form])
    for cut, tolerance in ((TILE, 0), (21, 1e-3))[: 1 if form == "interpret" else 2]:
        early, _ = solved(cell, (x[:, :cut], *weights), iterations=2, **FORMS[form])
        late, _ = solved(cell, (x[:, cut:], *weights, *early[:, :, -1]), iterations=2, **FORMS[form])
        np.testing.assert_allclose(np.concatenate([early, late], axis=2), whole, rtol=0, atol=tolerance)


@both_cells
def test_bfloat16_inputs_are_computed_with_in_float32(cell):
    arrays = arguments(cell, 1, 20, 8)
    half = tuple(jnp.asarray(v, jnp.bfloat16) for v in arrays)
    want, _ = solved(cell, tuple(v.astype(jnp.float32) for v in half), impl="reference")
    for form in FORMS.values():
        got, residual = solved(cell, half, iterations=6, **form)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
        assert residual < 1e-6


@both_cells
def test_the_gradient_is_that_of_the_recurrence(cell):
    """To rounding in float64, with respect to inputs, weights, peepholes and the states carried in."""
    with jax.enable_x64(True):
        arrays = arguments(cell, 2, 21, 5, dtype=np.float64)
        got, _ = solved(cell, arrays, iterations=7, **CHUNKED)
        want, _ = solved(cell, arrays, impl="reference")
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)
        close(weighted(cell, arrays, iterations=7, **CHUNKED), weighted(cell, arrays, impl="reference"), 1e-12)


@both_cells
def test_memory_of_the_gradient_does_not_grow_with_iterations(cell):
    arrays = arguments(cell, 2, 64, 16)

    def needed(iterations, impl="chunked"):
        def loss(*arrays):
            return sum(h.sum() for h in jax.tree.leaves(OPS[cell](*arrays, iterations=iterations, impl=impl)[0]))

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile()
        kept = jax.eval_shape(lambda *arrays: jax.vjp(loss, *arrays)[1], *arrays)
        return compiled.memory_analysis().temp_size_in_bytes, sum(v.size for v in jax.tree.leaves(kept))

    few, many = needed(2), needed(8)
    assert few == many
    trajectory = CELLS[cell].states * arrays[0].size // 3
    assert few[1] <= arrays[0].size + trajectory + 8 * 2 * 16


@both_cells
def test_the_residual_has_no_gradient(cell):
    def loss(x, *others):
        return OPS[cell](x, *others, iterations=1, impl="chunked")[1].sum()

    gradient = compiled(jax.grad(loss))(*arguments(cell, 1, 9, 4))
    np.testing.assert_array_equal(gradient, 0)


def test_each_row_of_a_batch_has_its_residual():
    arrays = arguments("gru", 3, 20, 4, bound=3.0)
    arrays[0][0] = 0
    arrays[-1][0] = 0
    arrays[0][2, 5] = np.nan
    for form in FORMS.values():
        _, residual = solved("gru", arrays, iterations=1, **form)
        assert residual[0] < 1e-6
        assert residual[1] > 1e-3
        assert np.isnan(residual[2])


def test_without_recurrent_weights_one_step_solves_a_linear_recurrence():
    x, a, h0 = arguments("gru", 2, 37, 8)
    want, _ = solved("gru", (x, 0 * a, h0), impl="reference")
    got, _ = solved("gru", (x, 0 * a, h0), iterations=1, **INTERPRET)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_under_vmap_and_jit():
    arrays = arguments("gru", 4, 19, 8)
    want, _ = solved("gru", arrays, impl="reference")
    x, a, h0 = arrays
    pairs = (x.reshape(2, 2, *x.shape[1:]), h0.reshape(2, 2, -1))
    h, _ = compiled(jax.vmap(lambda x, h0: OPS["gru"](x, a, h0, iterations=5, **INTERPRET)))(*pairs)
    np.testing.assert_allclose(h.reshape(want[0].shape), want[0], rtol=0, atol=1e-5)


WRONG = {
    "x must be": lambda x, a, h0: (x[:, :, :2], a, h0),
    r"empty, got \(0,": lambda x, a, h0: (x[:0], a, h0[:0]),
    r"a must be \(3, 4\)": lambda x, a, h0: (x, a[:2], h0),
    r"h0 must be \(2, 4\)": lambda x, a, h0: (x, a, h0[0]),
    "a must be real": lambda x, a, h0: (x, a.astype(int), h0),
    "x must be real": lambda x, a, h0: (x.astype(int), a, h0),
}


@pytest.mark.parametrize("message", WRONG)
def test_arguments_that_do_not_fit_are_refused(message):
    with pytest.raises(ValueError, match=f"newton_gru: .*{message}"):
        OPS["gru"](*WRONG[message](*arguments("gru", 2, 5, 4)))


def test_options_that_do_not_fit_are_refused():
    x, a, h0 = arguments("gru", 2, 5, 4)
    with pytest.raises(ValueError, match="iterations=-1 must not be negative"):
        OPS["gru"](x, a, h0, iterations=-1)
    with pytest.raises(ValueError, match=r"takes a .*ChunkedConfig"):
        OPS["gru"](x, a, h0, impl="chunked", config=HopperConfig())
    with pytest.raises(ValueError, match=r"p must be \(2, 4\)"):
        OPS["lstm"](x, a, a)
    with jax.enable_x64(True), pytest.raises(ValueError, match="x is float64"):
        OPS["gru"](x.astype(np.float64), a, h0, impl="interpret")

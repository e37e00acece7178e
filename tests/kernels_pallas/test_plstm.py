"""The pLSTM grid: closed forms, symmetries, borders, known answers, and what every form of it must share with the definition."""

import os
from functools import partial
from math import comb
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.plstm import Config, plstm_grid, supports
from kernels_pallas.plstm.core import Gates
from paperlab.recurrence import grid

ROOT = Path(os.environ.get("PAPERLAB_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")) / "plstm"
KNOWN = sorted(ROOT.glob("core2d_[DP]_*.npz"))
QUICK = {"xla_backend_optimization_level": 0}
IMPLEMENTATIONS = ("reference", "chunked", "interpret")


@partial(jax.jit, static_argnames=("impl", "tile", "scale"), compiler_options=QUICK)
def run(arrays, impl, tile=3, scale=None):
    return plstm_grid(*arrays, impl=impl, config=Config(tile), scale=scale)


@partial(jax.jit, static_argnames=("impl", "tile"), compiler_options=QUICK)
def gradients(arrays, weights, impl, tile=3):
    def loss(arrays):
        found = plstm_grid(*arrays, impl=impl, config=Config(tile))
        return sum((x * w).sum() for x, w in zip(found, weights, strict=True))

    return jax.grad(loss)(arrays)


def drawn(X, Y, DK=3, DV=2, H=1, seed=0, dtype=jnp.float64):
    """(q, k, v, nine gates, left, top), transitions of both signs and small enough to keep sums small."""
    rng = np.random.default_rng(seed)
    shapes = [(DK,), (DK,), (DV,), *[()] * 9]
    nodes = [rng.normal(size=(1, H, X, Y, *shape)) * (1 if shape else 0.6) for shape in shapes]
    return tuple(jnp.asarray(x, dtype) for x in (*nodes, *(rng.normal(size=(1, H, n, DK, DV)) for n in (Y, X))))


def weights_of(found, seed=7):
    keys = jax.random.split(jax.random.key(seed), len(found))
    return tuple(jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, found, strict=True))


def assert_near(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("size", [(7, 5), (1, 4), (2, 9)], ids=str)
def test_tiles_are_the_node_loop_in_float64(size):
    with jax.enable_x64(True):
        arrays = drawn(*size)
        wanted = run(arrays, "reference")
        assert wanted[0].dtype == wanted[1].dtype == jnp.float64
        assert_near(run(arrays, "chunked"), wanted, 1e-12)
        weights = weights_of(wanted)
        assert_near(gradients(arrays, weights, "chunked"), gradients(arrays, weights, "reference"), 1e-11)


def test_the_conventions_are_those_of_the_grid_memory():
    with jax.enable_x64(True):
        q, k, v, *gates, direct, left, top = drawn(5, 4)
        trailing = (3, 3, 2, 2, 2, 2, 3, 3)
        wide = grid.Gates(*(g.reshape(*g.shape, *(1,) * n) for g, n in zip(gates, trailing, strict=True)))
        entering = grid.Edges(left[..., None], top[..., None])
        own = direct.reshape(*direct.shape, 1, 1, 1, 1)
        out, leaving = grid.grid_memory(*(x[..., None] for x in (q, k, v)), wide, own, entering=entering, impl="nodes")
        wanted = out[..., 0], leaving.vertical[..., 0], leaving.horizontal[..., 0]
        assert_near(run((q, k, v, *gates, direct, left, top), "reference"), wanted, 1e-12)


def test_gradients_are_slopes():
    with jax.enable_x64(True):
        arrays = drawn(4, 5)
        weights = weights_of(run(arrays, "reference"))
        direction = drawn(4, 5, seed=1)

        def value(step):
            found = run(tuple(x + step * d for x, d in zip(arrays, direction, strict=True)), "chunked")
            return sum(float((x * w).sum()) for x, w in zip(found, weights, strict=True))

        slope = (value(1e-5) - value(-1e-5)) / 2e-5
        found = gradients(arrays, weights, "chunked")
        assert slope == pytest.approx(
            sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True)), rel=1e-6
        )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_one_source_spreads_as_the_binomial_distribution(impl):
    X = Y = 9
    alpha, gamma = 0.3, 0.9
    one, source = jnp.ones((1, 1, X, Y)), jnp.zeros((1, 1, X, Y)).at[0, 0, 0, 0].set(1)
    q = k = v = one[..., None]
    right, down = alpha * one, (1 - alpha) * one
    gates = (source * right, source * down, gamma * right, gamma * right, gamma * down, gamma * down, one, one)
    field = run((q, k, v, *gates), impl, 4)[0][0, 0, :, :, 0]
    wanted = [
        [comb(x + y, x) * alpha**x * (1 - alpha) ** y * gamma ** (x + y - 1) * (x + y > 0) for y in range(Y)]
        for x in range(X)
    ]
    np.testing.assert_allclose(field, wanted, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_one_source_fills_the_quadrant_where_paths_are_unique(impl):
    one, source = jnp.ones((1, 1, 5, 6)), jnp.zeros((1, 1, 5, 6)).at[0, 0, 1, 2].set(1)
    q = k = v = one[..., None]
    field = run((q, k, v, source, source, one, one, None, one, one, one), impl, 4)[0][0, 0, :, :, 0]
    wanted = np.zeros((5, 6))
    wanted[1:, 2:] = 1
    wanted[1, 2] = 0
    np.testing.assert_allclose(field, wanted, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_turning_the_grid_over_exchanges_right_and_down(impl):
    arrays = drawn(5, 4, dtype=jnp.float32)
    q, k, v, sr, sd, rl, ru, dl, du, ml, mu, direct, left, top = arrays
    nodes = [jnp.swapaxes(x, 2, 3) for x in (q, k, v, sd, sr, du, dl, ru, rl, mu, ml, direct)]
    out, right, bottom = run((*nodes, top, left), impl)
    assert_near((jnp.swapaxes(out, 2, 3), bottom, right), run(arrays, impl), 1e-5)


@pytest.mark.parametrize("axis", [2, 3], ids=["x", "y"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_two_halves_are_the_whole(impl, axis):
    arrays = drawn(5, 4, dtype=jnp.float32)
    out, right, bottom = run(arrays, impl)
    *nodes, left, top = arrays
    first, second = zip(*(jnp.split(x, [2], axis) for x in nodes), strict=True)
    if axis == 2:
        top, top_2 = jnp.split(top, [2], 2)
        out_1, between, bottom_1 = run((*first, left, top), impl)
        out_2, right_2, bottom_2 = run((*second, between, top_2), impl)
        found = jnp.concatenate([out_1, out_2], 2), right_2, jnp.concatenate([bottom_1, bottom_2], 2)
    else:
        left, left_2 = jnp.split(left, [2], 2)
        out_1, right_1, between = run((*first, left, top), impl)
        out_2, right_2, bottom_2 = run((*second, left_2, between), impl)
        found = jnp.concatenate([out_1, out_2], 3), jnp.concatenate([right_1, right_2], 2), bottom_2
    assert_near(found, (out, right, bottom), 1e-5)


def test_states_stay_wide_where_inputs_are_bfloat16():
    arrays = drawn(6, 7, 8, 8, dtype=jnp.float32)
    low = tuple(x.astype(jnp.bfloat16) for x in arrays[:3])
    rest = tuple(x.astype(jnp.float32) for x in arrays[3:])
    with jax.enable_x64(True):
        wanted = run(tuple(jnp.asarray(x, jnp.float64) for x in (*low, *rest)), "reference")
    for impl in ("chunked", "interpret"):
        out, right, bottom = run((*low, *rest), impl)
        assert (out.dtype, right.dtype, bottom.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
        assert_near((out, right, bottom), wanted, 1e-2)


def test_missing_gates_are_zeros_and_the_scale_is_that_of_the_output():
    q, k, v, sr, sd, rl, ru, _, du, ml, mu, _, left, top = drawn(4, 3, dtype=jnp.float32)
    zero = jnp.zeros_like(sr)
    found = run((q, k, v, sr, sd, rl, ru, None, du, ml, mu), "chunked", scale=2.0)
    arrays = (q, k, v, sr, sd, rl, ru, zero, du, ml, mu, zero, jnp.zeros_like(left), jnp.zeros_like(top))
    out, right, bottom = run(arrays, "chunked")
    assert_near(found, (2 * 3**0.5 * out, right, bottom), 1e-5)


def test_the_kernel_may_be_mapped():
    arrays = drawn(4, 3, H=2, dtype=jnp.float32)
    single = tuple(x[:, :1] for x in arrays)
    stacked = tuple(jnp.stack([x[:, :1], x[:, 1:]]) for x in arrays)
    found = jax.vmap(lambda *x: plstm_grid(*x, impl="interpret", config=Config(2)))(*stacked)
    assert_near([x[0] for x in found], run(single, "reference"), 1e-5)
    assert_near([x[:, 0].swapaxes(0, 1) for x in found], run(arrays, "reference"), 1e-5)


def test_what_a_kernel_does_not_take_is_said():
    def refusal(platform, DK, DV, dtype, Y=14, tile=8):
        q, v = (jax.ShapeDtypeStruct((1, 1, 14, Y, D), dtype) for D in (DK, DV))
        return supports(platform, q, q, v, config=Config(tile)).reason

    assert refusal("tpu", 64, 64, jnp.bfloat16) == refusal("hopper", 64, 64, jnp.float32) == ""
    assert "DK = 48" in refusal("hopper", 48, 64, jnp.bfloat16)
    assert "shared memory" in refusal("hopper", 64, 64, jnp.bfloat16, tile=14)
    assert "VMEM" in refusal("tpu", 256, 256, jnp.bfloat16, Y=100)
    assert "float16 inputs" in refusal("tpu", 64, 64, jnp.float16)


def test_arguments_that_do_not_fit_are_named():
    q, k, v, *gates = drawn(3, 2, dtype=jnp.float32)[:12]
    with pytest.raises(ValueError, match="k must be"):
        plstm_grid(q, k[..., :2], v, *gates)
    with pytest.raises(ValueError, match="rl must be"):
        plstm_grid(q, k, v, *gates[:2], gates[2][:, :, :2], *gates[3:])
    with pytest.raises(ValueError, match="left must be"):
        plstm_grid(q, k, v, *gates, jnp.zeros((1, 1, 3, 3, 2)))
    with pytest.raises(ValueError, match="must not be empty"):
        plstm_grid(*(x[:0] for x in (q, k, v, *gates)))
    with pytest.raises(ValueError, match="floating point"):
        plstm_grid(q.astype(jnp.int32), k, v, *gates)


@pytest.mark.skipif(not KNOWN, reason="the folder of known answers is not here (PAPERLAB_GOLDEN)")
@pytest.mark.parametrize("path", KNOWN, ids=lambda path: path.stem)
def test_known_answers(path):
    names = ("S0_r", "S0_d", "T0_rl", "T0_ru", "T0_dl", "T0_du", "M0_l", "M0_u", "D0")
    with np.load(path) as known, jax.enable_x64(True):

        def plain(name, rank):
            return None if name not in known else jnp.asarray(known[name].reshape(*known[name].shape[:rank]))[:, None]

        arrays = (*(plain(name, 4) for name in "QKV"), *(plain(name, 3) for name in names))
        edges = tuple(plain(name, 4) for name in ("C_left", "C_top"))
        wanted = [known[name][:, None, ..., 0] for name in ("out_from_C", "C_right_last", "C_bottom_last")]
        weights = (plain("w", 4), 0.0, 0.0)
        for impl in ("reference", "chunked"):
            assert_near(run(arrays, impl)[0], known["out"][:, None, ..., 0], 1e-11)
            assert_near(run((*arrays, *edges), impl), wanted, 1e-11)
            slopes = gradients(arrays, weights, impl)
            for name, slope in zip((*"QKV", *names), slopes, strict=True):
                if slope is not None:
                    assert_near(slope.reshape(known[f"grad_{name}"].shape), known[f"grad_{name}"], 1e-11)
    if "8x4" in path.stem:
        single = tuple(None if x is None else x.astype(jnp.float32) for x in (*arrays, *edges))
        assert_near(run(single, "interpret"), wanted, 1e-5)


def test_the_names_of_gates_are_one_order_everywhere():
    assert Gates._fields[:8] == grid.Gates._fields

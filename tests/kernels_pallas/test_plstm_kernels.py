"""The kernels of the pLSTM grid where their memories and threads are simulated: nothing uninitialised is read, nothing races."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import compat
from kernels_pallas.plstm import hopper, hopper_backward, tpu, tpu_backward
from kernels_pallas.plstm.core import Gates, Inputs, Results
from kernels_pallas.plstm.reference import reference
from kernels_pallas.plstm.tiles import cut, side, uncut

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


@cache
def drawn(H, X, Y, DK, DV, dtype="float32"):
    """(inputs, cotangents of the results, results, cotangents of the inputs), the last two by the definition."""
    keys = iter(jax.random.split(jax.random.key(0), 20))
    q, k, v = (jax.random.normal(next(keys), (1, H, X, Y, D)).astype(dtype) for D in (DK, DK, DV))
    gates = Gates(*(jax.random.uniform(next(keys), (1, H, X, Y), minval=-0.3, maxval=0.7) for _ in Gates._fields))
    left, top = (jax.random.normal(next(keys), (1, H, length, DK, DV)) for length in (Y, X))
    x = Inputs(q, k, v, gates, left, top)

    @jax.jit
    def evaluated(x, keys):
        found, pull = jax.vjp(reference, x)
        cotangents = Results(*(jax.random.normal(key, a.shape) for key, a in zip(keys, found, strict=True)))
        return cotangents, found, pull(cotangents)[0]

    return x, *evaluated(x, jnp.stack([next(keys) for _ in range(3)]))


def assert_near(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


def in_tiles(x, results, tile):
    """(tiles, cotangents of the results of all tiles)."""
    tiles = cut(x, tile)
    joined = partial(uncut, size=x.q.shape[2:4], px=tiles.gates.rl.shape[-2])
    shapes = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (tiles.v, tiles.left, tiles.top)]
    return tiles, joined, Results(*jax.linear_transpose(joined, *shapes)(results))


def test_tpu_kernels_read_nothing_uninitialised():
    x, cotangents, wanted, slopes = drawn(2, 4, 3, 4, 6)
    tiles, joined, d_results = in_tiles(x, cotangents, 2)
    simulated = compat.tpu_simulation()
    assert_near(joined(*tpu.forward(tiles, interpret=simulated)), wanted, 1e-5)
    back = tpu_backward.backward(tiles, d_results, interpret=simulated)
    found = jax.vjp(partial(cut, most=2), x)[1](back)[0]
    assert_near(found, slopes, 1e-5)


HOPPER = [(2, 2, 3, 32, 8, "float32", 2), (1, 2, 2, 128, 72, "bfloat16", 2), (1, 1, 1, 64, 64, "float32", 8)]


@pytest.mark.parametrize("case", HOPPER, ids=str)
def test_hopper_kernels_do_not_race(case):
    *sizes, dtype, rows = case
    x, cotangents, wanted, slopes = drawn(*sizes, dtype)
    with compat.gpu_mesh():
        simulated = compat.gpu_simulation()
        found = hopper.forward(x, rows, interpret=simulated)
        back = hopper_backward.backward(x, cotangents, rows, interpret=simulated)
    assert_near(found, wanted, 1e-5)  # outputs leave in float32
    assert_near(back, slopes, TOLERANCE[dtype])


@pytest.mark.parametrize(("length", "most", "wanted"), [(14, 8, 7), (8, 8, 8), (9, 8, 5), (1, 8, 1), (17, 4, 4)])
def test_tiles_waste_least(length, most, wanted):
    assert side(length, most) == wanted


def test_states_pass_unchanged_beyond_the_grid():
    x, *_ = drawn(1, 5, 3, 4, 6)
    tiles = cut(x, 4)
    px, py = tiles.gates.rl.shape[-2:]
    assert (tiles.q.shape[2:4], px, py) == ((2, 1), 3, 3)
    beyond = tiles.gates.rl[0, 0, 1, 0, 2]
    np.testing.assert_array_equal(beyond, np.ones(3))
    np.testing.assert_array_equal(tiles.gates.source_r[0, 0, 1, 0, 2], np.zeros(3))

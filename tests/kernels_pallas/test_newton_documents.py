"""`starts` of the Newton solvers: packed documents are what each is alone, in every form, and kernels know it."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import compat, targets
from kernels_pallas.newton import ChunkedConfig, HopperConfig, TPUConfig, hopper
from kernels_pallas.newton.core import DOCUMENTS, marked
from tests.kernels_pallas.newton_cases import CELLS, OPS, STATES, arguments, compiled

T = 21
STARTS = np.zeros((2, T), np.int32)
STARTS[0, [3, 4, 16]] = STARTS[1, [0, 9]] = 1
FORMS = {
    "reference": {"impl": "reference"},
    "chunked": {"impl": "chunked", "config": ChunkedConfig(16)},
    "interpret": {"impl": "interpret", "config": TPUConfig(16, 8, 128)},
}
both_cells = pytest.mark.parametrize("cell", CELLS)


def alone(cell, arrays):
    """Every document by itself: states [K, B, T, D]. The state that is given enters what no start cuts off from it."""
    x, *rest = arrays
    weights, states = rest[: -STATES[cell]], rest[-STATES[cell] :]
    rows = []
    for b, flags in enumerate(STARTS):
        cuts, parts = sorted({0, *np.nonzero(flags)[0].tolist(), T}), []
        for i, j in pairwise(cuts):
            given = [s[b : b + 1] for s in states] if i == 0 and not flags[0] else []
            found, _ = OPS[cell](x[b : b + 1, i:j], *weights, *given, impl="reference")
            parts.append(jnp.stack(jax.tree.leaves(found)))
        rows.append(jnp.concatenate(parts, axis=2))
    return jnp.concatenate(rows, axis=1)


def packed(cell, arrays, **options):
    found, _ = OPS[cell](*arrays, starts=jnp.asarray(STARTS), iterations=7, **options)
    return jnp.stack(jax.tree.leaves(found))


@both_cells
@pytest.mark.parametrize("form", FORMS)
def test_packed_documents_equal_each_alone(cell, form):
    """Values and every gradient."""
    arrays = arguments(cell, 2, T, 6)

    def both(states):
        def loss(*arrays):
            found = states(cell, arrays)
            return (jnp.sin(3 * found) * jnp.arange(1.0, T + 1)[:, None]).sum(), found

        where = tuple(range(len(arrays)))
        return compiled(jax.grad(loss, where, has_aux=True))(*arrays)

    got = both(lambda cell, arrays: packed(cell, arrays, **FORMS[form]))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(both(alone)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-5)


@both_cells
def test_bfloat16_inputs_start_documents_too(cell):
    arrays = [jnp.asarray(v, jnp.bfloat16) for v in arguments(cell, 2, T, 6)]
    got = packed(cell, arrays, impl="interpret")
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, alone(cell, arrays), atol=5e-3)


@both_cells
def test_the_hopper_kernel_of_documents_in_simulation(cell):
    arrays = [jnp.asarray(v) for v in arguments(cell, 2, T, 8)]
    K, config = STATES[cell], HopperConfig(2, 2, 32)
    want = packed(cell, arrays, impl="reference")
    x, w = marked(CELLS[cell], arrays[0], jnp.asarray(STARTS)), tuple(jnp.concatenate(arrays[1:-K]))
    with compat.gpu_mesh():
        run = jax.jit(lambda *a: hopper.solve(DOCUMENTS[CELLS[cell]], *a, 7, config, interpret=compat.gpu_simulation()))
        got, _ = jax.block_until_ready(run(x, w, arrays[-K:]))
    assert not compat.gpu_races()
    np.testing.assert_allclose(np.stack(got), want, rtol=0, atol=1e-5)


@both_cells
@pytest.mark.parametrize("target", ["tpu", "hopper"])
def test_they_lower_for_accelerators(cell, target):
    x, *weights = arguments(cell, 1, 64, 128)[: -STATES[cell]]
    arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, *weights, np.zeros((1, 64), np.int32))]
    lowered = targets.lower_for(target, lambda *a: OPS[cell](*a[:-1], starts=a[-1], impl="pallas"), *arrays)
    text = lowered.as_text()
    assert "tpu_custom_call" in text or "mosaic_gpu" in text


def test_starts_that_do_not_fit_are_refused():
    x, a, h0 = arguments("gru", 2, 5, 4)
    for starts in (np.zeros((2, 4), int), np.zeros((2, 5), np.float32)):
        with pytest.raises(ValueError, match=r"newton_gru: starts must be integers \(2, 5\)"):
            OPS["gru"](x, a, h0, starts=jnp.asarray(starts))

"""The step-by-step kernels that the solvers are measured against."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import compat, targets
from kernels_pallas.newton import fused_sequential_gru, fused_sequential_lstm, sequential
from tests.kernels_pallas.newton_cases import CELLS, OPS, arguments, compiled

BASELINES = {"gru": fused_sequential_gru, "lstm": fused_sequential_lstm}
both_cells = pytest.mark.parametrize("cell", CELLS)


@both_cells
def test_step_by_step_is_the_definition(cell):
    """Ragged in time and channels, bfloat16 inputs; on any device that has no kernel, the definition itself."""
    x, *others = arguments(cell, 2, 37, 130)
    for x_ in (x, jnp.asarray(x, jnp.bfloat16)):
        want, _ = compiled(lambda *a: OPS[cell](*a, impl="reference"))(x_, *others)
        for impl in ("interpret", "auto"):
            got = compiled(lambda *a, impl=impl: BASELINES[cell](*a, impl=impl))(x_, *others)
            jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-6), got, want)


@both_cells
def test_the_hopper_baseline_in_simulation(cell):
    x, *weights = arguments(cell, 1, 3 * sequential.TIME, 128)[: -CELLS[cell].states]
    want, _ = compiled(lambda *a: OPS[cell](*a, impl="reference"))(x, *weights)
    shapes = [jax.ShapeDtypeStruct((1, x.shape[1], 128), jnp.float32)] * CELLS[cell].states
    first = jnp.zeros((1, CELLS[cell].states, 128))
    with compat.gpu_mesh():
        run = jax.jit(
            lambda x, w, s: sequential.on_hopper(CELLS[cell], x, w, s, shapes, interpret=compat.gpu_simulation())
        )
        got = jax.block_until_ready(run(x, np.concatenate(weights), first))
    assert not compat.gpu_races()
    np.testing.assert_allclose(np.stack(got), np.stack(jax.tree.leaves(want)), rtol=0, atol=1e-6)


@pytest.mark.compilers
@pytest.mark.parametrize("target", targets.TARGETS)
@both_cells
def test_the_baselines_compile(cell, target):
    if targets.missing() and not os.environ.get("CI"):
        pytest.skip(targets.missing())
    x, *weights = arguments(cell, 1, 64, 256, start=False)[: -CELLS[cell].states]
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, *weights)]
    built = targets.compile_for(target, lambda *a: BASELINES[cell](*a, impl="pallas"), *shapes)
    assert built.calls >= 1
    assert [kernel for kernel in built.kernels if kernel.spilled] == []


def test_what_does_not_fit_is_refused():
    x, a, h0 = arguments("gru", 2, 5, 4)
    with pytest.raises(ValueError, match=r"fused_sequential_gru: a must be \(3, 4\)"):
        fused_sequential_gru(x, a[:2], h0)
    with pytest.raises(ValueError, match="empty"):
        fused_sequential_lstm(x[:0], a, a[:2])

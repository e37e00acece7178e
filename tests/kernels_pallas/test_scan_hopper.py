"""The scans' Hopper kernel: simulated with its threads, barriers and races; how it divides its work."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import compat, linear_scan, targets
from kernels_pallas.scan import Config, hopper, hopper_tiles
from kernels_pallas.scan.op import OPS
from tests.kernels_pallas.scan_cases import ALGEBRAS, assert_close, draw, wanted

SHARED_MEMORY = 232448  # bytes a block of threads can have on an H100


@pytest.mark.parametrize(
    ("name", "T", "D", "shared", "reverse", "segments", "dtype"),
    [
        ("linear", 20, 136, 0, False, 1, jnp.float32),
        ("linear", 20, 12, 0, True, 2, jnp.bfloat16),
        ("complex", 28, 128, 2, True, 3, jnp.float32),
        ("block2", 12, 128, 1, False, 2, jnp.float32),
        ("block2", 17, 128, 0, True, 1, jnp.float32),
    ],
)
def test_threads_and_copies_simulated(name, T, D, shared, reverse, segments, dtype):
    """Ragged ends of time and channels; one pass, or three over segments of time."""
    algebra = ALGEBRAS[name]
    arguments = draw(algebra, 2 if shared == 2 else 1, T, D, shared, dtype)
    out, gradients = jax.block_until_ready(
        wanted(algebra, *arguments, reverse)
    )  # a simulation that waits for others hangs
    a, b, h0, g, g_last = arguments
    how = {"reverse": reverse, "config": Config(8, 128, 2, segments), "interpret": compat.gpu_simulation()}
    tolerance = 2e-2 if dtype == jnp.bfloat16 else 1e-5
    with compat.gpu_mesh():
        found = jax.block_until_ready(jax.jit(partial(hopper.forward, algebra, **how))(a, b, h0))
        assert not compat.gpu_races()
        turned = jax.block_until_ready(jax.jit(partial(hopper.backward, algebra, **how))(a, out[0], h0, g, g_last))
    assert not compat.gpu_races()
    assert_close((found, turned), (out, gradients), tolerance)


@pytest.mark.parametrize("name", ALGEBRAS)
@pytest.mark.parametrize("backward", [False, True])
def test_tiles_of_every_configuration_fit_in_shared_memory(name, backward):
    algebra = ALGEBRAS[name]
    m, n = algebra.coefficients, algebra.states
    for op_case in OPS[algebra.name].cases:
        for config in OPS[algebra.name].configs(op_case, "hopper"):
            assert hopper_tiles.allowed(config)
            widths = [4] * (m + 2 * n if backward else m + n) + [-4] * (m + n if backward else n)
            plan = hopper_tiles.plan_for(algebra, (op_case["B"], op_case["T"], op_case["D"]), False, config, widths)
            tiles = sum(plan.stages if w > 0 else hopper_tiles.OUT_STAGES for w in widths)
            assert tiles * plan.rows * plan.channels * 4 <= SHARED_MEMORY - 1024
            assert plan.segments * plan.span >= plan.tiles > (plan.segments - 1) * plan.span
            assert plan.rows % plan.unrolled == 0


def test_time_is_cut_where_batch_and_channels_leave_the_device_idle():
    def segments(B, T, D):
        return hopper_tiles.plan_for(ALGEBRAS["linear"], (B, T, D), False, Config(), [4, 4, -4]).segments

    assert segments(8, 4096, 2048) == 1
    assert segments(1, 64, 128) == 1  # too short to be cut
    assert 128 <= segments(1, 32768, 256) <= 132
    assert segments(1, 32768, 2048) * 16 <= 2 * 132


def test_three_passes_lower_as_three_kernels():
    x = jax.ShapeDtypeStruct((1, 4096, 256), jnp.float32)
    for batch, kernels in ((1, 3), (64, 1)):
        x = jax.ShapeDtypeStruct((batch, 4096, 256), jnp.float32)
        text = targets.lower_for("hopper", partial(linear_scan, impl="pallas"), x, x).as_text()
        assert text.count("stablehlo.custom_call @mosaic_gpu") == kernels


def test_odd_channels_and_more_batch_axes_lower():
    x = jax.ShapeDtypeStruct((2, 3, 50, 5), jnp.bfloat16)
    scan = jax.vmap(partial(linear_scan, impl="pallas"))
    assert "mosaic_gpu" in targets.lower_for("hopper", scan, x, x).as_text()

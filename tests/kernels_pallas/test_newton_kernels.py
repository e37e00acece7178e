"""The kernels under simulation: memories that begin as NaN on a TPU; threads, barriers and races on a Hopper GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import compat
from kernels_pallas.newton import ChunkedConfig, HopperConfig, TPUConfig, hopper, tpu
from kernels_pallas.newton.op import OPS
from tests.kernels_pallas.newton_cases import CELLS, arguments, compiled, solved

# cell, (batch, time, channels), block sizes; a last tile that is not full, channels that fill no tile
ON_HOPPER = {
    "gru": ("gru", (1, 21, 130), HopperConfig(2, 4, 128)),
    "gru side by side": ("gru", (1, 37, 72), HopperConfig(2, 2, 64)),
    "gru four lanes in one warpgroup": ("gru", (2, 11, 8), HopperConfig(1, 2, 32)),
    "gru two channels a thread": ("gru", (1, 5, 256), HopperConfig(2, 1, 256)),
    "gru one step": ("gru", (1, 1, 8), HopperConfig(2, 2, 64)),
    "lstm": ("lstm", (1, 11, 40), HopperConfig(2, 2, 64)),
}


def flat(cell, arrays):
    """(x, w, start) as the shells take them."""
    K = CELLS[cell].states
    return arrays[0], tuple(jnp.concatenate(arrays[1:-K])), arrays[-K:]


@pytest.mark.parametrize("name", ON_HOPPER)
def test_the_hopper_kernel_in_simulation(name):
    """Two Newton steps in every tile equal those of plain JAX, far from the solution; no two threads race."""
    cell, sizes, config = ON_HOPPER[name]
    arrays = arguments(cell, *sizes, bound=1.5)
    tile = ChunkedConfig(config.lanes * config.rows)
    want, far = solved(cell, arrays, iterations=2, impl="chunked", config=tile)
    with compat.gpu_mesh():
        run = jax.jit(lambda *a: hopper.solve(CELLS[cell], *a, 2, config, interpret=compat.gpu_simulation()))
        got, residual = jax.block_until_ready(run(*flat(cell, arrays)))
    assert not compat.gpu_races()
    np.testing.assert_allclose(np.stack(got), want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(residual, far, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("iterations", [0, 1])
def test_few_iterations_do_not_race(iterations):
    arrays = arguments("gru", 1, 13, 64, bound=1.5)
    config = HopperConfig(2, 2, 64)
    want, _ = solved("gru", arrays, iterations=iterations, impl="chunked", config=ChunkedConfig(8))
    with compat.gpu_mesh():
        run = jax.jit(lambda *a: hopper.solve(CELLS["gru"], *a, iterations, config, interpret=compat.gpu_simulation()))
        got, _ = jax.block_until_ready(run(*flat("gru", arrays)))
    assert not compat.gpu_races()
    np.testing.assert_allclose(np.stack(got), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_the_tpu_kernel_reads_no_memory_that_was_not_written(cell):
    """Ragged in time and channels; parallel axes of the grid in a random order."""
    arrays = arguments(cell, 2, 21, 130, bound=1.5)
    want, far = solved(cell, arrays, iterations=2, impl="chunked", config=ChunkedConfig(16))
    run = compiled(lambda *a: tpu.solve(CELLS[cell], *a, 2, TPUConfig(16, 8, 128), interpret=compat.tpu_simulation()))
    got, residual = run(*flat(cell, arrays))
    np.testing.assert_allclose(np.stack(got), want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(residual, far, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_every_configuration_fits_into_shared_memory(cell):
    """And one that does not is refused with the numbers."""
    for itemsize in (2, 4):
        found = hopper.candidates(CELLS[cell], itemsize)
        assert {config.channels for config in found} == {32, 64, 128, 256}
        assert all(config.warpgroups * config.channels <= 1024 for config in found)
    assert OPS[f"newton_{cell}"].configs({"B": 8, "T": 512, "D": 1024, "dtype": "float32"}, "hopper")[0].channels == 64
    x, w, start = flat(cell, arguments(cell, 1, 5, 8))
    with pytest.raises(ValueError, match="bytes of shared memory, there are 232448"):
        hopper.solve(CELLS[cell], x, w, start, 1, HopperConfig(8, 64, 128))

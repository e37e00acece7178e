"""The dry run: the same table and program as the real one, FLOPs of loops in full, too large is refused."""

import gc

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from paperlab.errors import ConfigError
from paperlab.training import dry_run
from paperlab.training.flops import count_flops
from tests.training.tiny_task import TinyTask, draw, tiny_config

W = jnp.ones((8, 8))


def scanned(x):
    return lax.scan(lambda x, w: (x @ w, None), x, jnp.ones((5, 8, 8)))[0]


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (lambda x: x @ W, 2 * 4 * 8 * 8),
        (scanned, 5 * 2 * 4 * 8 * 8),
        (jax.jit(scanned), 5 * 2 * 4 * 8 * 8),
        (jax.checkpoint(lambda x: x @ W), 2 * 4 * 8 * 8),
        (lambda x: lax.cond(x.sum() > 0, lambda x: x @ W @ W, lambda x: x @ W, x), 2 * 2 * 4 * 8 * 8),
        (jax.vmap(lambda row: W @ row), 2 * 4 * 8 * 8),
        (lambda x: jax.grad(lambda x: (x @ W).sum())(x), 2 * 2 * 4 * 8 * 8),
        (lambda x: lax.conv_general_dilated(x[None, None], jnp.ones((3, 1, 1, 1)), (1, 1), "SAME"), 2 * 3 * 4 * 8),
    ],
    ids=["matmul", "scan", "jit", "remat", "cond", "vmap", "grad", "conv"],
)
def test_flops_by_hand(function, want):
    assert count_flops(jax.make_jaxpr(function)(jnp.ones((4, 8)))) == want


class SpecTask(TinyTask):
    """Knows the shape of its batches, and has no data."""

    def batch_spec(self):
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in draw(0).items()}

    def data(self, split, process_index=0, process_count=1):
        raise AssertionError("a dry run reads no data")


def test_dry_run_reads_no_data_and_counts(capsys):
    config = tiny_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    gc.collect()  # what earlier tests have left
    before = len(jax.live_arrays())
    found = dry_run.compile_step(config, SpecTask())
    assert len(jax.live_arrays()) == before
    assert (found["devices"], found["parameters"]) == (8, 97)
    forward = 2 * 8 * (4 * 16 + 16)
    assert (
        found["flops_per_step"] == 2 * forward + 2 * 8 * 16
    )  # forward, weight gradients, gradient of the hidden layer
    assert found["argument_bytes"] > 0
    shown = capsys.readouterr().out
    assert "hidden/kernel  4x16   float32     64  fsdp,tensor" in shown
    assert "of 80 GB" in shown


def test_too_large_is_refused():
    config = tiny_config(mesh__device_memory=1e-6)
    with pytest.raises(ConfigError, match=r"config.mesh.device_memory=1e-06: raise config.train.micro_batches"):
        dry_run.compile_step(config, SpecTask())


def test_table_alone(capsys):
    text = dry_run.show(tiny_config(), SpecTask())
    assert text in capsys.readouterr().out

"""What the TPU kernels of gla are made of, what they refuse, and when they are taken."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels_pallas import gla, platforms, targets
from kernels_pallas.compat import pallas_tpu
from kernels_pallas.gated_linear_attention.core import decay, weights
from kernels_pallas.gated_linear_attention.inputs import canonical
from kernels_pallas.gated_linear_attention.tpu import TpuConfig, grid_of, supports_tpu, tpu
from tests.kernels_pallas.gla_cases import draw
from tests.kernels_pallas.test_gla_structure import equations

Q, V = jnp.zeros((8, 32, 2, 16)), jnp.zeros((8, 32, 2, 8))


def shapes(K: int = 128, V: int = 128, dtype=jnp.bfloat16, log_beta: bool = False):
    """Canonical inputs as shapes."""
    q, v = jax.ShapeDtypeStruct((1, 64, 2, K), dtype), jax.ShapeDtypeStruct((1, 64, 2, V), dtype)
    beta = v if log_beta else None
    return jax.eval_shape(lambda q, v, beta: canonical(q, q, v, q, beta, None, None, None), q, v, beta)


@pytest.mark.parametrize(("gate", "chunk"), [("channel", 16), ("channel", 64), ("scalar", 16)])
def test_no_exponent_is_ever_positive_and_no_decay_above_one(monkeypatch, gate, chunk):
    exponents = []
    exp = jnp.exp
    monkeypatch.setattr(pallas_tpu, "roll", jnp.roll)  # which a TPU's roll is, outside of kernels too
    monkeypatch.setattr(jnp, "exp", lambda x: exponents.append(float(x.max())) or exp(x))
    log_alpha = -jax.random.exponential(jax.random.key(0), (chunk, 4))
    log_alpha = log_alpha.at[::5].set(-200.0)
    d = decay(log_alpha if gate == "channel" else log_alpha[:, 0][None], None, chunk)
    P = weights(jnp.ones((chunk, 4)), jnp.ones((chunk, 4)), d)
    assert exponents
    assert max(exponents) <= 0
    assert max(float(a.max()) for a in jax.tree.leaves((d.start, d.end, d.gamma, d.between))) <= 1
    total = np.cumsum(np.asarray(log_alpha if gate == "channel" else log_alpha[:, :1].repeat(4, 1), np.float64), axis=0)
    pairs = np.tril(np.ones((chunk, chunk), bool))[..., None]
    want = np.where(pairs, np.exp(np.where(pairs, total[:, None] - total[None], 0)), 0).sum(-1)
    np.testing.assert_allclose(P, want, rtol=1e-5, atol=1e-30)


def test_neither_a_state_per_token_nor_a_decay_per_pair_is_formed():
    T, C, K, width = 128, 32, 16, 32
    q, v = jnp.zeros((1, T, 2, K)), jnp.zeros((1, T, 2, width))

    def loss(q, k, v, log_alpha):
        o, state = gla(q, k, v, log_alpha, impl="interpret", config=TpuConfig(C))
        return jnp.sum(o * o) + jnp.sum(state * state)

    found = list(equations(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, q, v, q).jaxpr))
    assert sum(e.primitive.name == "pallas_call" for e in found) == 3  # outputs, states, gradients
    largest = max(v.aval.size for e in found for v in e.outvars if hasattr(v.aval, "size"))
    assert largest < min(C * C * K, T * K * width / 4)


REFUSED = {
    "the dtype of q, k and v is float16": {"dtype": jnp.float16},
    "log_beta has a value a channel": {"log_beta": True},
    "K = 640 is more than the 512": {"K": 640},
    "V = 1000 is no multiple of 128": {"K": 256, "V": 1000},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_kernel_does_not_take_is_said(reason):
    support = supports_tpu(shapes(**REFUSED[reason]))
    assert not support
    assert reason in support.reason


@pytest.mark.parametrize("size", [{}, {"K": 4, "V": 6}, {"K": 512, "V": 1024}, {"dtype": jnp.float32}])
def test_what_the_kernel_takes(size):
    assert supports_tpu(shapes(**size))


def test_float64_is_refused_by_name():
    with jax.enable_x64(True):
        arrays, _ = draw("T2", jnp.float64)
        with pytest.raises(ValueError, match=r"impl='interpret': the dtype .* float64.*; use 'chunked'"):
            gla(arrays["q"], arrays["k"], arrays["v"], None, impl="interpret")


@pytest.mark.parametrize("config", [TpuConfig(chunk=24), TpuConfig(chunk=512), TpuConfig(tile=-1)])
def test_blocks_of_no_size_are_refused(config):
    with pytest.raises(ValueError, match="chunk must be one of"):
        tpu(canonical(Q, Q, V, Q, None, None, None, None), config)


@pytest.mark.parametrize(
    ("sizes", "config", "chunk", "tile"),
    [
        ({"T": 1, "K": 64, "V": 64}, TpuConfig(), 16, 64),
        ({"T": 100, "K": 64, "V": 64}, TpuConfig(), 128, 64),
        ({"T": 1000, "K": 64, "V": 100}, TpuConfig(256, tile=16), 256, 100),
        ({"T": 1000, "K": 500, "V": 1024}, TpuConfig(256), 128, 256),
        ({"T": 1000, "K": 256, "V": 384}, TpuConfig(64, tile=256), 64, 128),
    ],
)
def test_less_is_taken_where_less_is_there(sizes, config, chunk, tile):
    q, v = (jax.ShapeDtypeStruct((1, sizes["T"], 1, sizes[n]), jnp.bfloat16) for n in "KV")
    x = jax.eval_shape(lambda q, v: canonical(q, q, v, q, None, None, None, None), q, v)
    got = grid_of(x, config)
    assert (got.C, got.tile) == (chunk, tile)


def lowered(f, *arguments) -> str:
    return targets.lower_for("tpu", f, *arguments).as_text()


def test_auto_lowers_to_the_kernel_on_a_tpu():
    assert "gla_forward" in lowered(lambda q, v: gla(q, q, v, q), Q, V)


def test_auto_falls_back_and_says_why(caplog):
    with caplog.at_level(logging.WARNING, logger="kernels_pallas"):
        text = lowered(lambda q, v: gla(q, q, v, q, log_beta=v), Q, V)
    assert "tpu_custom_call" not in text
    assert "log_beta has a value a channel" in caplog.text
    with pytest.raises(ValueError, match=r"log_beta has a value a channel.*use 'chunked'"):
        lowered(lambda q, v: gla(q, q, v, q, log_beta=v, impl="pallas"), Q, V)


def test_a_mesh_that_splits_arrays_takes_the_kernel_inside_shard_map_only():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data")

    def split(q, v):
        run = jax.shard_map(
            lambda q, v: gla(q, q, v, q)[0], mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
        )
        return run(q, v)

    with jax.set_mesh(mesh), platforms.assume("tpu"):
        whole, each = (
            jax.jit(f).trace(Q, V).lower(lowering_platforms=("tpu",)).as_text()
            for f in (lambda q, v: gla(q, q, v, q)[0], split)
        )
        with pytest.raises(ValueError, match="the mesh splits data"):
            jax.eval_shape(lambda q, v: gla(q, q, v, q, impl="pallas"), Q, V)
    assert "tpu_custom_call" not in whole
    assert "tpu_custom_call" in each

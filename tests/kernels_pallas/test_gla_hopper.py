"""The Hopper kernels of gated linear attention: simulated on a CPU against the recurrence in float64, and really compiled."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import compat, targets
from kernels_pallas.gated_linear_attention import reference
from kernels_pallas.gated_linear_attention.hopper import HopperConfig, fitting, hopper, supports_hopper
from kernels_pallas.gated_linear_attention.hopper_intra import intra
from kernels_pallas.gated_linear_attention.hopper_states import shared_bytes
from kernels_pallas.gated_linear_attention.inputs import Inputs, canonical

NAMES = ("q", "k", "v", "log_alpha", "initial_state")


def drawn(T, H, G, K, V, *, strong=False, scalar=False):
    """Arrays of `gla` by name; every value but those of the gates and the state is a bfloat16 number."""
    rng = np.random.default_rng(T + K)
    log_alpha = -0.1 * rng.exponential(size=(1, T, G, 1 if scalar else K))
    if strong:
        log_alpha[..., 0], log_alpha[..., 1] = -12, 0
        log_alpha[:, 5], log_alpha[:, ::7, :, 2] = -30, -200
    return {
        "q": jnp.asarray(rng.normal(size=(1, T, H, K)), jnp.bfloat16),
        "k": jnp.asarray(rng.normal(size=(1, T, G, K)) * K**-0.5, jnp.bfloat16),
        "v": jnp.asarray(rng.normal(size=(1, T, G, V)), jnp.bfloat16),
        "log_alpha": jnp.asarray(log_alpha, jnp.float32),
        "initial_state": jnp.asarray(rng.normal(size=(1, H, K, V)), jnp.float32),
    }


def weighted(run, arrays, segment_ids, dtype):
    """A function of the arrays: a weighted sum of outputs and last state, with both."""
    T, H = arrays["q"].shape[1:3]
    V = arrays["v"].shape[-1]
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(1, T, H, V)), dtype), jnp.asarray(rng.normal(size=(H, 1, V)), dtype)

    def loss(*values):
        q, k, v, log_alpha, state = values
        x = canonical(q, k, v, log_alpha, None, q.shape[-1] ** -0.5, state, segment_ids)
        o, last = run(x)
        o, last = o.reshape(1, T, H, V).astype(dtype), last.reshape(1, H, -1, V)
        return (o * weights[0]).sum() + (last * weights[1]).sum(), (o, last)

    return loss


def simulated(arrays, segment_ids=None, config=HopperConfig(), gradients=True):
    """(o, last state, gradients by the order of NAMES) of the kernels."""
    with compat.gpu_mesh():
        loss = weighted(
            lambda x: hopper(x, config, interpret=compat.gpu_simulation()), arrays, segment_ids, jnp.float32
        )
        values = [arrays[name] for name in NAMES]
        if not gradients:
            return jax.block_until_ready(jax.jit(loss)(*values)[1])
        (_, out), found = jax.jit(jax.value_and_grad(loss, argnums=range(5), has_aux=True))(*values)
        return jax.block_until_ready((*out, *found))


def exact(arrays, segment_ids=None, gradients=True):
    """The same by the recurrence in float64."""
    with jax.enable_x64(True):
        values = [jnp.asarray(np.asarray(arrays[name], np.float64)) for name in NAMES]
        loss = weighted(reference.recurrent, arrays, segment_ids, jnp.float64)
        if not gradients:
            return jax.tree.map(np.asarray, jax.jit(loss)(*values)[1])
        (_, out), found = jax.jit(jax.value_and_grad(loss, argnums=range(5), has_aux=True))(*values)
        return jax.tree.map(np.asarray, (*out, *found))


def assert_close(found, wanted, tolerance=0.01):
    """Root mean square of the error, and a twentieth of its maximum, relative to the root mean square of what is wanted."""
    for name, a, b in zip(("o", "last", *NAMES), found, wanted, strict=False):
        a, size = np.asarray(a, np.float64), np.sqrt(np.mean(b**2))
        assert a.shape == b.shape, name
        assert np.sqrt(np.mean((a - b) ** 2)) <= tolerance * size, name
        assert np.abs(a - b).max() <= 20 * tolerance * size, name


def test_gradients_with_groups_resets_strong_gates_and_a_state(capfd):
    """Two ragged chunks, three tiles of values; resets inside chunks and gates of -200: any positive exponent overflows."""
    arrays = drawn(70, 2, 1, 64, 192, strong=True)
    segment_ids = jnp.asarray((np.arange(70) >= 20).astype(np.int32) + (np.arange(70) >= 66))[None]
    found = simulated(arrays, segment_ids)
    assert "RACE" not in "".join(capfd.readouterr())
    assert_close(found, exact(arrays, segment_ids))


def test_a_scalar_gate_over_two_tiles_of_keys_and_two_warpgroups(capfd):
    """And what the forward pass found is kept for the backward pass."""
    arrays = drawn(130, 1, 1, 128, 128, scalar=True)
    found = simulated(arrays, config=HopperConfig(keep=True))
    assert "RACE" not in "".join(capfd.readouterr())
    assert_close(found, exact(arrays))


@pytest.mark.parametrize(
    ("T", "K", "V", "config"), [(1, 64, 128, HopperConfig()), (200, 64, 64, HopperConfig(3, 1)), (64, 256, 64, None)]
)
def test_outputs_and_last_state(T, K, V, config, capfd):
    arrays = drawn(T, 1, 1, K, V)
    found = simulated(arrays, config=config or HopperConfig(), gradients=False)
    assert "RACE" not in "".join(capfd.readouterr())
    assert_close(found, exact(arrays, gradients=False))


def test_packed_segments_are_separate_calls():
    """A reset leaves nothing behind: after it the values are those of a sequence that begins there, to the last bit."""
    arrays = drawn(64, 1, 1, 64, 64)
    segment_ids = jnp.asarray((np.arange(64) >= 32).astype(np.int32))[None]
    packed, last = simulated(arrays, segment_ids, gradients=False)
    tail = {name: jnp.zeros_like(a) if name == "initial_state" else a[:, 32:] for name, a in arrays.items()}
    alone, alone_last = simulated(tail, gradients=False)
    assert bool((packed[:, 32:] == alone).all())
    np.testing.assert_allclose(last, alone_last, atol=1e-6)


def test_weights_of_pairs_hold_no_positive_exponent():
    """Gates so strong that exp of a sum of their negatives is infinite."""
    arrays = drawn(64, 1, 1, 64, 64)
    with compat.gpu_mesh():
        out = intra(arrays["q"], arrays["k"], jnp.full((1, 64, 1, 64), -100.0, jnp.float32), compat.gpu_simulation())
    q_start, k_end, weights, gamma = (np.asarray(a, np.float64) for a in out)
    near = (np.asarray(arrays["q"], np.float64) * np.asarray(arrays["k"], np.float64)).sum(axis=-1)[0, :, 0]
    np.testing.assert_allclose(weights[0, :, 0], np.diag(near), atol=0.01 * np.abs(near).max())
    np.testing.assert_array_equal(q_start, 0)
    np.testing.assert_array_equal(k_end[:, :-1], 0)
    np.testing.assert_array_equal(gamma, 0)


def test_gates_keep_more_than_bfloat16():
    """64 gates that bfloat16 rounds to the same side; their sum is off by 0.016 if they are rounded, outputs by 0.004."""
    ones = jnp.ones((1, 64, 1, 64), jnp.bfloat16)
    gate = -(1 + 2**-8 - 2**-16) / 16
    with compat.gpu_mesh():
        q_start, k_end, *_ = intra(ones, ones, jnp.full(ones.shape, gate, jnp.float32), compat.gpu_simulation())
    steps = np.arange(1, 65)
    np.testing.assert_allclose(np.asarray(q_start, np.float64)[0, :, 0, 0], np.exp(gate * steps), rtol=4e-3)
    np.testing.assert_allclose(np.asarray(k_end, np.float64)[0, :, 0, 0], np.exp(gate * (64 - steps)), rtol=4e-3)


def shapes(B, T, G, R, K, V, dtype=jnp.bfloat16, **others):
    s = jax.ShapeDtypeStruct
    q, k, v = s((B, T, G, R, K), dtype), s((B, T, G, K), dtype), s((B, T, G, V), dtype)
    return Inputs(q, k, v, s((B, T, G, K), jnp.float32), None, s((B, G, R, K, V), jnp.float32), None)._replace(**others)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (shapes(1, 64, 1, 1, 64, 64, jnp.float32), "float32; the kernel multiplies in bfloat16"),
        (shapes(1, 64, 1, 1, 96, 64), "K = 96"),
        (shapes(1, 64, 1, 1, 512, 64), "K = 512"),
        (shapes(1, 64, 1, 1, 64, 96), "V = 96 is no multiple of 64"),
        (shapes(1, 64, 1, 1, 64, 64, log_beta=jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.float32)), "log_beta"),
    ],
)
def test_what_is_refused_is_said(x, reason):
    assert reason in supports_hopper(x).reason
    with pytest.raises(ValueError, match=reason):
        hopper(x)


@pytest.mark.parametrize("K", [64, 128, 192, 256])
@pytest.mark.parametrize("V", [64, 128, 512])
def test_configurations_fit_into_shared_memory(K, V):
    assert supports_hopper(shapes(1, 64, 1, 1, K, V))
    stages, warpgroups, _ = fitting(HopperConfig(8, 2), K, V)
    assert stages >= 2
    assert V % (64 * warpgroups) == 0
    assert shared_bytes(stages, warpgroups, K) <= 227 * 1024


@pytest.mark.compilers
@pytest.mark.parametrize(("K", "V"), [(192, 192)])
def test_gradients_compile_without_spills(K, V):
    if targets.missing() and not os.environ.get("CI"):
        pytest.skip(targets.missing())

    def loss(q, k, v, log_alpha, state):
        o, last = hopper(Inputs(q, k, v, log_alpha, None, state, None))
        return o.astype(jnp.float32).sum() + last.sum()

    x = shapes(2, 1024, 2, 2, K, V)
    found = targets.compile_for("sm_90a", jax.grad(loss, argnums=range(5)), x.q, x.k, x.v, x.log_alpha, x.state)
    assert len(found.kernels) == 4
    assert [kernel for kernel in found.kernels if kernel.spilled] == []

"""Gates, block-diagonal maps, orthogonal matrices, and transitions that never grow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from paperlab.errors import ConfigError
from paperlab.layers.gates import BlockLinear, DirectGate, Gate, MarkGate, SourceGate
from paperlab.layers.orthogonal import ORTHOGONAL, exponential, householder, qr
from paperlab.layers.transition import EIGENVALUES, Transition

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 3, 6)), jnp.float32)


def apply(module, x=X, **drawn):
    """Output at the initialisation, weights in `drawn` replaced by random ones of that size."""
    params = module.init(jax.random.key(0), x)
    if drawn:
        params = jax.tree.map(lambda a: drawn["size"] * jnp.asarray(RNG.normal(size=a.shape), a.dtype), params)
    return module.apply(params, x), params["params"]


def test_a_block_reads_its_part_and_gives_its_part():
    y, params = apply(BlockLinear(4, blocks=2, use_bias=True), size=1.0)
    kernel = np.asarray(params["kernel"])
    assert kernel.shape == (2, 3, 2)
    whole = np.zeros((6, 4))
    whole[:3, :2], whole[3:, 2:] = kernel
    np.testing.assert_allclose(y, X @ whole + params["bias"], atol=1e-5)
    with pytest.raises(ConfigError, match="blocks=4"):
        apply(BlockLinear(4, blocks=4))


@pytest.mark.parametrize(("gate", "start"), [(SourceGate, -4), (MarkGate, -4), (DirectGate, -6), (Gate, 0)])
def test_gates_start_at_their_bias(gate, start):
    y, params = apply(gate((2, 2)))
    assert y.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-start)), rtol=1e-6)
    assert params["map"]["kernel"].shape == (1, 6, 4)


def test_a_gate_reads_the_input_or_does_not():
    y, params = apply(Gate((2, 2), 0.5, function="identity", weights="normal"))
    np.testing.assert_allclose(y, 0.5 + (X @ params["map"]["kernel"][0]).reshape(2, 3, 2, 2), atol=1e-6)
    y, params = apply(Gate((2,), 0.5, weights="none"))
    assert set(params) == {"bias"}
    np.testing.assert_allclose(y, jax.nn.sigmoid(jnp.full((2, 3, 2), 0.5)))


def test_gates_of_half_precision_inputs_are_float32():
    assert apply(Gate((2,)), X.astype(jnp.bfloat16))[0].dtype == jnp.float32
    assert apply(Transition(2, 2), X.astype(jnp.bfloat16))[0].dtype == jnp.float32


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_orthogonal(name):
    """The series is cut off, and Householder's vectors are a little shorter than 1: both within 1e-3 for matrices of norm 1."""
    with jax.enable_x64(True):
        mat = jnp.asarray(RNG.normal(size=(5, 4, 4))) * 0.5
        Q = ORTHOGONAL[name](mat)
        np.testing.assert_allclose(Q @ Q.swapaxes(-1, -2), np.broadcast_to(np.eye(4), Q.shape), atol=1e-3)
        np.testing.assert_allclose(ORTHOGONAL[name](jnp.eye(4)), np.eye(4), atol=1e-4)
        slopes = jax.grad(lambda m: ORTHOGONAL[name](m)[0].sum())(jnp.eye(4))
        assert jnp.isfinite(slopes).all()


def test_the_series_is_the_exponential_for_small_norms_and_is_cut_off_for_large_ones():
    with jax.enable_x64(True):
        mat = jnp.asarray(RNG.normal(size=(3, 4, 4)))
        skew = np.asarray(mat - mat.swapaxes(-1, -2))
        np.testing.assert_allclose(exponential(0.3 * mat), [expm(0.3 * A) for A in skew], atol=1e-12)
        terms = np.broadcast_to(np.eye(4), skew.shape)
        total = terms
        for i in range(1, 7):
            terms = terms @ skew / i
            total = total + terms
        np.testing.assert_allclose(exponential(mat, 7), total, atol=1e-12)
        assert np.abs(total - [expm(A) for A in skew]).max() > 1e-3


def test_householder_is_minus_the_product_of_the_reflections_in_order():
    with jax.enable_x64(True):
        mat = RNG.normal(size=(3, 3))
        want = -np.eye(3)
        for row in mat:
            u = row / (np.linalg.norm(row) + 1e-5)
            want = want @ (np.eye(3) - 2 * np.outer(u, u))
        np.testing.assert_allclose(householder(jnp.asarray(mat)), want, atol=1e-12)


def test_qr_follows_its_matrix_continuously():
    with jax.enable_x64(True):
        near = jnp.eye(3) + 1e-6 * jnp.asarray(RNG.normal(size=(3, 3)))
        np.testing.assert_allclose(qr(near), np.eye(3), atol=1e-5)
        np.testing.assert_allclose(jnp.abs(qr(near, positive=False)), np.eye(3), atol=1e-5)


@pytest.mark.parametrize("orthogonal", ORTHOGONAL)
@pytest.mark.parametrize("eigenvalues", EIGENVALUES)
def test_transitions_never_grow(eigenvalues, orthogonal):
    T, _ = apply(Transition(2, 3, eigenvalues=eigenvalues, orthogonal=orthogonal, weights="normal"), size=0.3)
    assert T.shape == (2, 3, 2, 3, 3)
    largest = np.linalg.svd(np.asarray(T), compute_uv=False).max()
    assert 0 < largest <= 1 + 2e-3
    assert (np.asarray(T).min() < 0) or eigenvalues != "tanh"


def test_a_transition_starts_near_the_identity_and_can_be_symmetric():
    T, _ = apply(Transition(2, 4))
    np.testing.assert_allclose(T, np.broadcast_to(np.tanh(5) * np.eye(4), T.shape), atol=1e-6)
    T, params = apply(Transition(2, 4, symmetric=True), size=0.3)
    np.testing.assert_allclose(T, T.swapaxes(-1, -2), atol=1e-6)
    assert "outward" not in params
    assert jnp.abs(T - jnp.eye(4) * T).max() > 1e-2
    T, _ = apply(Transition(3, 1), size=0.3)
    assert T.shape == (2, 3, 3, 1, 1)


def test_a_transition_without_input_is_the_same_everywhere():
    T, params = apply(Transition(2, 2, weights="none", spread=0.5))
    np.testing.assert_array_equal(T, jnp.broadcast_to(T[0, 0], T.shape))
    assert set(params["inward"]) == {"bias"}
    wide = partial(Transition, 2, 2, spread=0.5)
    reading = wide().init(jax.random.key(0), X)["params"]
    np.testing.assert_allclose(params["inward"]["bias"], reading["inward"]["bias"])

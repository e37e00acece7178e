"""Known answers and borders of the small layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.layers.activations import activation
from paperlab.layers.convolution import ShortConvolution
from paperlab.layers.mlp import MLP, SwiGLU, ffn_width
from paperlab.layers.norms import LayerNorm, RMSNorm
from paperlab.layers.rotary import rotate
from paperlab.layers.segments import document_starts, last_start, runs

X = np.random.default_rng(0).normal(size=(2, 7, 3, 4)).astype(np.float32)
assert_close = np.testing.assert_allclose


@pytest.mark.parametrize("shape", [(), (3, 4)])
def test_rms_norm(shape):
    params = {"params": {"scale": jnp.arange(1.0, 13.0).reshape(3, 4) if shape else jnp.arange(1.0, 5.0)}}
    want = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-3) * np.asarray(params["params"]["scale"])
    assert_close(RMSNorm(1e-3, True, shape).apply(params, X), want, rtol=1e-5)
    assert RMSNorm(1e-3, True, shape).init(jax.random.key(0), X)["params"]["scale"].shape == (shape or (4,))


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(affine):
    params = {"params": {"scale": jnp.arange(4.0), "bias": jnp.ones(4)}} if affine else {}
    want = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5)
    assert_close(
        LayerNorm(affine=affine).apply(params, X), want * np.arange(4) + 1 if affine else want, rtol=1e-4, atol=1e-6
    )
    assert bool(LayerNorm(affine=affine).init(jax.random.key(0), X)) == affine


def test_norms_of_large_half_precision_inputs_are_computed_in_float32():
    x = jnp.full((1, 4), 400.0, jnp.float16)  # 400^2 is infinite in float16
    y = RMSNorm(affine=False).apply({}, x)
    assert y.dtype == jnp.float16
    assert_close(y, 1.0, rtol=1e-3)


def test_width_of_the_feed_forward_layer():
    assert [ffn_width(d, 256) for d in (1024, 2048)] == [2816, 5632]
    assert [ffn_width(d, 32) for d in (96, 128)] == [256, 352]


def test_feed_forward_layers():
    x = X[0, 0]
    p = SwiGLU(4, 6).init(jax.random.key(0), x)["params"]
    gate, up, down = (np.asarray(p[n]["kernel"]) for n in ("gate", "up", "down"))
    assert_close(
        SwiGLU(4, 6).apply({"params": p}, x),
        ((x @ gate) / (1 + np.exp(-x @ gate)) * (x @ up)) @ down,
        rtol=1e-4,
        atol=1e-8,
    )
    p = MLP(4, 6, "relu", bias=True).init(jax.random.key(0), x)["params"]
    p["up"]["bias"] = jnp.arange(6.0)
    want = np.maximum(x @ p["up"]["kernel"] + np.arange(6.0), 0) @ p["down"]["kernel"]
    assert_close(MLP(4, 6, "relu", bias=True).apply({"params": p}, x), want, rtol=1e-5, atol=1e-7)


def test_convolution_stays_inside_documents():
    x, ids = X[..., 0], np.array([[5, 5, 5, 5, 5, 6, 6], [1, 2, 2, 3, 3, 3, 3]])
    conv = ShortConvolution(3, width=4, activation="identity")
    params = conv.init(jax.random.key(0), x, conv.zero_tail(2))
    kernel = np.asarray(params["params"]["kernel"])
    want = np.zeros_like(x)
    for b, t, j in np.ndindex(2, 7, 4):
        if t >= j and ids[b, t] == ids[b, t - j]:
            want[b, t] += kernel[j] * x[b, t - j]
    y, tail = conv.apply(params, x, conv.zero_tail(2), runs(ids))
    assert_close(y, want, rtol=1e-5, atol=1e-6)
    assert_close(tail, np.stack([[0 * x[0, 0], x[0, 5], x[0, 6]], x[1, 4:]]))


def test_rotation_keeps_length_and_sees_distance_only():
    x = X[:, :, :, :4]
    assert jnp.array_equal(rotate(x, jnp.zeros((2, 7), int)), x)
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    assert_close(jnp.linalg.norm(rotate(x, positions), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)

    def scores(shift):
        turned = rotate(x, positions + shift)
        return jnp.einsum("bthd,bshd->bhts", turned, rotate(x[::-1], positions + shift))

    assert_close(scores(0), scores(100), rtol=1e-3, atol=1e-4)
    assert jnp.abs(scores(0) - jnp.einsum("bthd,bshd->bhts", x, x[::-1])).max() > 0.1


def test_rotation_known_answer():
    y = rotate(jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4), jnp.array([[3]]), theta=100.0)
    assert_close(y.ravel(), [np.cos(3), -np.sin(0.3), np.sin(3), np.cos(0.3)], rtol=1e-6)


def test_documents_start_where_ids_change_and_where_the_carried_one_differs():
    ids = jnp.array([[4, 4, 5], [4, 4, 5], [4, 4, 5], [9, 4, 9]])
    starts = document_starts(ids, jnp.array([-1, 4, 3, 9]))
    assert starts.tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 1], [0, 1, 1]]
    time = jnp.broadcast_to(jnp.arange(10, 13), (4, 3))
    assert last_start(starts, time, jnp.full(4, 7)).tolist() == [[7, 7, 12], [7, 7, 12], [10, 10, 12], [7, 11, 12]]
    assert runs(ids, jnp.array([-1, 4, 3, 9])).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 2], [0, 1, 2]]


def test_unknown_activation_names_the_field():
    with pytest.raises(ValueError, match="feature_map='selu': choose one of identity"):
        activation("selu", "feature_map")

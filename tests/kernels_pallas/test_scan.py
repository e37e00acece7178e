"""The three scans: their TPU kernel with nothing to lean on, directions, batches, known answers, what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import block2_scan, compat, complex_scan, linear_scan, platforms
from kernels_pallas.scan import Config, tpu
from tests.golden.adapters._kernels import run as known_answer
from tests.golden.cases import SHIPPED, read
from tests.kernels_pallas.scan_cases import ALGEBRAS, assert_close, draw, wanted

QUICK = {"xla_backend_optimization_level": 0}
KNOWN = {case.kind: case for case in read(SHIPPED, "_kernels")}


def uniform(shape, seed):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-0.6, maxval=0.6)


@pytest.mark.parametrize(
    ("name", "T", "shared", "reverse"),
    [
        ("linear", 37, 0, True),
        ("linear", 48, 2, False),
        ("complex", 37, 1, True),
        ("complex", 40, 0, False),
        ("block2", 37, 0, False),
        ("block2", 33, 1, True),
    ],
)
def test_tpu_tiles_in_memory_full_of_nan(name, T, shared, reverse):
    """Three tiles of time, two of channels, both ends ragged; whatever is read before it is written shows."""
    algebra = ALGEBRAS[name]
    a, b, h0, g, g_last = draw(algebra, 2, T, 200, shared)
    how = {"reverse": reverse, "config": Config(16, 128), "interpret": compat.tpu_simulation()}
    out, gradients = wanted(algebra, a, b, h0, g, g_last, reverse)
    assert_close(jax.jit(partial(tpu.forward, algebra, **how), compiler_options=QUICK)(a, b, h0), out)
    backward = jax.jit(partial(tpu.backward, algebra, **how), compiler_options=QUICK)
    assert_close(backward(a, out[0], h0, g, g_last), gradients)


@pytest.mark.parametrize("impl", ["reference", "chunked", "interpret"])
def test_in_reverse_is_the_flipped_scan(impl):
    a, b, h0 = uniform((2, 19, 8), 1), uniform((2, 19, 8), 2), uniform((2, 8), 3)
    scan = jax.jit(partial(linear_scan, impl=impl), static_argnames="reverse", compiler_options=QUICK)
    h, last = scan(a, b, h0, reverse=True)
    flipped, end = scan(a[:, ::-1], b[:, ::-1], h0, reverse=False)
    np.testing.assert_allclose(h, flipped[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(last, end, atol=1e-6)
    np.testing.assert_allclose(h[:, 0], last, atol=1e-6)


def test_all_three_agree_where_they_are_the_same_thing():
    """A complex number is a block [[re, -im], [im, re]]; without an imaginary part it is a number."""
    re, im, b = uniform((2, 9, 5), 1), uniform((2, 9, 5), 2), uniform((2, 9, 2, 5), 3)
    (h_re, h_im), _ = complex_scan(re, im, b[:, :, 0], b[:, :, 1])
    blocks = jnp.stack([jnp.stack([re, -im], 2), jnp.stack([im, re], 2)], 2)
    h, _ = block2_scan(blocks, b)
    np.testing.assert_allclose(h, jnp.stack([h_re, h_im], 2), atol=1e-6)
    (h_re, h_im), _ = complex_scan(re, 0 * im, b[:, :, 0], 0 * im)
    np.testing.assert_allclose(h_re, linear_scan(re, b[:, :, 0])[0], atol=1e-6)
    np.testing.assert_array_equal(h_im, 0)


@pytest.mark.parametrize("impl", ["chunked", "interpret"])
def test_more_batch_axes_by_vmap(impl):
    a, b, h0 = uniform((6,), 1), uniform((3, 2, 5, 6), 2), uniform((3, 2, 6), 3)

    def value(impl, a, b, h0):
        h, last = linear_scan(a, b, h0, impl=impl)
        return (h * b).sum() + (last**2).sum()

    def gradients(impl):
        one = jax.grad(partial(value, impl), argnums=(0, 1, 2))
        return jax.jit(jax.vmap(one, in_axes=(None, 0, 0)), compiler_options=QUICK)(a, b, h0)

    assert_close(gradients(impl), gradients("reference"))


@pytest.mark.parametrize("kind", KNOWN)
def test_known_answers_by_the_kernel(kind):
    case = KNOWN[kind]
    inputs, params, outputs = case.arrays()
    narrow = {np.dtype(np.float64): np.float32, np.dtype(np.complex128): np.complex64}
    inputs = {name: x.astype(narrow.get(x.dtype, x.dtype)) for name, x in inputs.items()}
    got = known_answer(kind, case.options, inputs, params, impl="interpret")
    for name, want in outputs.items():
        np.testing.assert_allclose(got[name], want, atol=2e-5 * np.abs(want).max(), rtol=0)


def test_carries_are_float32_for_bfloat16():
    """4096 small steps: sums of bfloat16 would stop growing at 256 times a step."""
    b = jnp.full((1, 4096, 1), 2.0**-9, jnp.bfloat16)
    for impl in ("reference", "chunked", "interpret"):
        _, last = linear_scan(jnp.ones((1,)), b, impl=impl)
        assert last.dtype == jnp.float32
        np.testing.assert_allclose(last, 8)


def test_float64_is_for_plain_jax():
    with jax.enable_x64(True):
        a, b = jnp.full((1, 70, 2), 0.999), jnp.ones((1, 70, 2))
        want = (1 - 0.999**70) / (1 - 0.999)
        for impl in ("reference", "chunked", "auto"):
            h, last = linear_scan(a, b, impl=impl)
            assert h.dtype == last.dtype == jnp.float64
            np.testing.assert_allclose(last, want, rtol=1e-13)
        with pytest.raises(ValueError, match="float64, the kernels take"):
            linear_scan(a, b, impl="interpret")


def test_where_a_kernel_refuses_plain_jax_is_taken_and_said(caplog):
    a, b = jnp.ones((1, 4, 2), jnp.float16), jnp.ones((1, 4, 2))
    with platforms.assume("hopper"):
        h, _ = linear_scan(a, b)
    np.testing.assert_array_equal(h[0, :, 0], [1, 2, 3, 4])
    assert "a is float16" in caplog.text


X = jnp.zeros((2, 5, 3))
PAIR = jnp.zeros((2, 5, 2, 3))
REFUSED = {
    r"b must be \[B, T, D\]": lambda: linear_scan(X, X[0]),
    "b must not be empty, got \\(0": lambda: linear_scan(X[:0], X[:0]),
    "complex_scan: b must not be empty": lambda: complex_scan(*[X[:, :0]] * 4),
    "block2_scan: b must not be empty": lambda: block2_scan(jnp.zeros((2, 5, 2, 2, 0)), PAIR[..., :0]),
    "a must be": lambda: linear_scan(X[:, :4], X),
    "h0 must be": lambda: linear_scan(X, X, X[:1, 0]),
    "a must be real floating": lambda: linear_scan(X.astype(complex), X),
    "b must be real floating": lambda: linear_scan(X, X.astype(int)),
    "a_re and a_im must have": lambda: complex_scan(X, X[:1], X, X),
    "h0_re and h0_im must have": lambda: complex_scan(X, X, X, X, X[:, 0]),
    r"b must be \[B, T, 2, D\]": lambda: block2_scan(PAIR, X),
    r"config.rows = 12 is no multiple of 16": lambda: linear_scan(X, X, impl="interpret", config=Config(12)),
    r"config.channels = 64": lambda: linear_scan(X, X, impl="interpret", config=Config(16, 64)),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_said(words):
    with pytest.raises(ValueError, match=words):
        REFUSED[words]()

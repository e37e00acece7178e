"""Softmax attention against its equations in float64 NumPy, and its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.mixers.attention import Mixer, _slot_times, _write

B, T, WIDTH, HEADS = 2, 9, 16, 4
X = np.random.default_rng(0).normal(size=(B, T, WIDTH))


def attention_in_numpy(m, p, x, ids):
    G, D = m.head_sizes()
    y = np.zeros((B, T, HEADS, D))
    position = np.array([[t - min(s for s in range(T) if ids[b, s] == ids[b, t]) for t in range(T)] for b in range(B)])
    if m.position == "learned":
        x = x + p["position_table"][np.minimum(position, m.max_positions - 1)]
    project = lambda n: (x @ p[n]["kernel"] + p[n].get("bias", 0.0)).reshape(B, T, -1, D)  # noqa: E731
    q, k, v = project("q"), np.repeat(project("k"), HEADS // G, 2), np.repeat(project("v"), HEADS // G, 2)
    turn = np.exp(1j * position[:, :, None, None] * m.rope_theta ** (-np.arange(D // 2) * 2 / D))
    for b, t, h in np.ndindex(B, T, HEADS):
        seen = [s for s in range(t + 1) if ids[b, s] == ids[b, t] and (not m.window or t - s < m.window)]
        if m.position == "rope":
            a, c = ((z[b, :, h, : D // 2] + 1j * z[b, :, h, D // 2 :]) * turn[b, :, 0] for z in (q, k))
            scores = (a[t] * c[seen].conj()).real.sum(-1)
        else:
            scores = k[b, seen, h] @ q[b, t, h]
        weights = np.exp(scores / D**0.5)
        y[b, t, h] = weights / weights.sum() @ v[b, seen, h]
    return y.reshape(B, T, -1) @ p["out"]["kernel"]


ROWS = {
    "rope": {},
    "grouped-window": {"kv_heads": 2, "window": 3, "rope_theta": 50.0},
    "learned": {"position": "learned", "max_positions": 4, "bias": True},
    "none": {"position": "none"},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_equals_its_equations(row):
    mixer = Mixer(WIDTH, HEADS, jnp.float32, **row)
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), jnp.asarray(X, jnp.float32))["params"]
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda a: 0.4 * draw(size=a.shape), shapes)
    ids = np.array([[0] * T, [1] * 4 + [2] * 5])
    run = jax.jit(mixer.apply)
    got, _ = run({"params": jax.tree.map(jnp.float32, params)}, jnp.float32(X), segment_ids=jnp.asarray(ids))
    np.testing.assert_allclose(got, attention_in_numpy(mixer, params, X, ids), rtol=1e-4, atol=1e-4)


def test_the_ring_holds_the_last_tokens():
    ring, seen = jnp.full((2, 3, 1, 1), -1.0), jnp.array([0, 4])
    new = jnp.arange(5.0).reshape(1, 5, 1, 1) + seen.reshape(2, 1, 1, 1)  # the value is the time
    ring = _write(ring, new, seen)
    np.testing.assert_array_equal(ring[..., 0, 0], [[3, 4, 2], [6, 7, 8]])
    np.testing.assert_array_equal(_slot_times(seen + 5, 3), ring[..., 0, 0])
    np.testing.assert_array_equal(_slot_times(jnp.array([0, 2]), 3), [[-1, -1, -1], [0, 1, -1]])


def test_a_stream_longer_than_its_cache_sees_the_last_tokens():
    mixer, windowed = Mixer(WIDTH, HEADS), Mixer(WIDTH, HEADS, window=4)
    x = jnp.float32(X)
    params = mixer.init(jax.random.key(0), x)
    state = mixer.zero_state(B, 4)
    step = jax.jit(lambda x, state: mixer.apply(params, x, state, method="step"))
    outputs = []
    for t in range(T):
        y, state = step(x[:, t], state)
        outputs.append(y)
    np.testing.assert_allclose(jnp.stack(outputs, 1), windowed.apply(params, x)[0], rtol=1e-4, atol=1e-6)


def test_the_cache_is_no_longer_than_the_window():
    mixer = Mixer(WIDTH, HEADS, jnp.bfloat16, kv_heads=2, window=8)
    assert mixer.zero_state(B, 1000)["k"].shape == (B, 8, 2, 4)
    assert mixer.zero_state(B, 1000)["k"].dtype == jnp.bfloat16
    assert mixer.zero_state(B, 1000, jnp.float32)["k"].dtype == jnp.float32
    assert mixer.zero_state(B, 5)["k"].shape == (B, 5, 2, 4)

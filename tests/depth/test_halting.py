"""ACT in all its kinds: the loop that stops equals the scan that trains; weights, limits, padding, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.depth.exits import RULES, exit_loops, read_out
from paperlab.depth.halting import KINDS, act

B, T, D, N = 2, 5, 3, 6


def stepper(p_NxBxT):
    def step(t, s):
        return jnp.sin(s) + 0.1 * t, p_NxBxT[t]

    return step


def inputs(scale=0.5, seed=0):
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.uniform(0, scale, (N, B, T))), jnp.asarray(draw.standard_normal((B, T, D)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("scale", [0.2, 0.9])
def test_the_loop_that_stops_equals_the_scan(kind, freeze, scale):
    p, s = inputs(scale)
    run = lambda loop: act(  # noqa: E731
        stepper(p), s, max_steps=N, kind=kind, freeze=freeze, loop=loop, key=jax.random.key(1)
    )
    scanned, stopped = run("scan"), run("while")
    for a, b in zip(scanned[:5], stopped[:5], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert int(scanned.steps) == int(stopped.steps) == int(scanned.updates.max())


@pytest.mark.parametrize("kind", ["accumulated", "graves"])
def test_weights_sum_to_one_where_a_position_halted(kind):
    p, s = inputs(0.4)
    found = act(stepper(p), s, max_steps=N, kind=kind, keep_weights=True)
    np.testing.assert_allclose(found.weights.sum(0), found.probability, rtol=1e-6)
    np.testing.assert_allclose(np.where(found.halted, found.weights.sum(0), 1), 1, rtol=1e-6)
    assert bool(found.halted.all()) == (kind == "graves")


def test_limits():
    _, s = inputs()
    sure, never = jnp.ones((N, B, T)), jnp.zeros((N, B, T))
    once = act(stepper(sure), s, max_steps=N)
    np.testing.assert_allclose(once.output, jnp.sin(s), rtol=1e-6)
    assert int(once.steps) == 1
    np.testing.assert_allclose(once.ponder, 2)  # one step, and all of it remainder
    endless = act(stepper(never), s, max_steps=N)
    np.testing.assert_allclose(endless.updates, N)
    np.testing.assert_allclose(endless.output, 0)
    half = act(stepper(sure * 0.5), s, max_steps=1)
    np.testing.assert_allclose(half.output, 0.5 * jnp.sin(s), rtol=1e-6)


@pytest.mark.parametrize("kind", ["accumulated", "basic", "global", "graves"])
def test_padding_and_other_rows_change_nothing(kind):
    p, s = inputs(0.5)
    whole = act(stepper(p), s, max_steps=N, kind=kind)
    wide_p = jnp.concatenate([p, jnp.ones((N, B, 2)) * 0.01], 2)
    wide_s = jnp.concatenate([s, jnp.ones((B, 2, D))], 1)
    valid = jnp.arange(T + 2) < T
    padded = act(stepper(wide_p), wide_s, max_steps=N, kind=kind, valid=jnp.broadcast_to(valid, (B, T + 2)))
    np.testing.assert_allclose(padded.output[:, :T], whole.output, rtol=1e-6)
    np.testing.assert_array_equal(padded.updates[:, T:], 0)
    alone = act(stepper(p[:, :1]), s[:1], max_steps=N, kind=kind)
    np.testing.assert_allclose(alone.output, whole.output[:1], rtol=1e-6)


def test_a_frozen_state_is_copied_onward():
    p = jnp.zeros((N, 1, 2)).at[0, 0, 0].set(1.0)
    seen = []

    def step(t, s):
        seen.append(s)
        return s + 1, p[t]

    with jax.disable_jit():
        act(step, jnp.zeros((1, 2, 1)), max_steps=3, freeze=True)
    np.testing.assert_array_equal(jnp.stack(seen)[:, 0, :, 0], [[0, 0], [1, 1], [1, 2]])


def test_the_ponder_loss_reaches_p_through_the_remainder():
    p, s = inputs(0.4)
    loss = lambda b: act(stepper(jax.nn.sigmoid(p + b)), s, max_steps=N).ponder.mean()  # noqa: E731
    with jax.enable_x64(True):
        p, s, h = p.astype(jnp.float64), s.astype(jnp.float64), 1e-6
        numeric = (loss(-1.0 + h) - loss(-1.0 - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(loss)(-1.0), numeric, rtol=1e-6)
    assert abs(float(numeric)) > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"kind": "some"}, {"loop": "for"}, {"max_steps": 0}, {"kind": "random"}, {"loop": "while", "keep_weights": True}],
)
def test_what_cannot_be_is_refused(options):
    p, s = inputs()
    with pytest.raises(ValueError):
        act(stepper(p), s, **({"max_steps": N} | options))


def test_exits():
    logits = jnp.log(
        jnp.asarray(
            [
                [[0.4, 0.35, 0.25], [0.8, 0.1, 0.1]],
                [[0.1, 0.85, 0.05], [0.5, 0.3, 0.2]],
                [[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]],
            ]
        )
    )
    want = {"oracle": [1, 0], "confidence": [2, 2], "margin": [1, 0], "entropy": [2, 2]}
    limits = {"oracle": 0.0, "confidence": 0.85, "margin": 0.6, "entropy": 0.4}
    for rule in RULES:
        loops = exit_loops(logits, rule, limits[rule])
        np.testing.assert_array_equal(loops, want[rule], err_msg=rule)
        np.testing.assert_array_equal(
            read_out(logits, loops), jnp.stack([logits[r, i] for i, r in enumerate(want[rule])])
        )
    with pytest.raises(ValueError, match="rule"):
        exit_loops(logits, "guess")

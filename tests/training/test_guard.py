"""The guard by itself: what it has seen, what it calls a spike, and that a step it discards leaves no trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperlab.training import guard
from tests.training.test_step import KEY, stepper
from tests.training.tiny_task import draw

watch = jax.jit(guard.watch, static_argnums=3)


def by_hand(losses, rules):
    """Mean, variance and verdicts in float64, from the equations of the module."""
    mean, variance, accepted, row, verdicts = 0.0, 0.0, 0, 0, []
    for loss in losses:
        deviation = max(np.sqrt(variance), abs(mean) / 1000)
        counts = np.isfinite(loss) and not (accepted >= rules.warmup and loss > mean + rules.spike * deviation)
        verdicts.append(counts)
        row = 0 if counts else row + 1
        if counts:
            part = max(1 - rules.decay, 1 / (accepted + 1))
            difference = loss - mean
            mean, variance, accepted = (
                mean + part * difference,
                (1 - part) * (variance + part * difference**2),
                accepted + 1,
            )
    return mean, variance, accepted, row, verdicts


def seen(losses, rules):
    state, verdicts = guard.fresh(), []
    for loss in losses:
        nonfinite = jnp.float32(not np.isfinite(loss))
        state, counts, _ = watch(state, jnp.float32(loss), nonfinite, rules)
        verdicts.append(bool(counts))
    return state, verdicts


@given(st.lists(st.sampled_from([0.5, 1.0, 1.1, 1.5, 2.0, 9.0, 1e6, float("nan"), float("inf")]), max_size=40))
def test_mean_variance_and_verdicts_are_those_of_the_equations(losses):
    rules = guard.Rules(spike=3.0, warmup=5, decay=0.9)
    mean, variance, accepted, row, verdicts = by_hand(losses, rules)
    state, got = seen(losses, rules)
    assert got == verdicts
    assert (int(state.accepted), int(state.row)) == (accepted, row)
    np.testing.assert_allclose([state.mean, state.variance], [mean, variance], rtol=1e-3, atol=1e-5)


def test_at_the_start_it_is_the_plain_mean_and_variance():
    losses = np.random.default_rng(0).normal(3.0, 1.0, 20)
    state, verdicts = seen(losses, guard.Rules(decay=0.98))
    assert all(verdicts)
    np.testing.assert_allclose([state.mean, state.variance], [losses.mean(), losses.var()], rtol=1e-4)


def test_without_a_threshold_nothing_finite_is_a_spike():
    rules = guard.rules(type("Faults", (), {"spike": 0.0, "warmup": 2, "decay": 0.98}))
    assert seen([1.0, 1.0, 1.0, 1e30, 0.0], rules)[1] == [True] * 5


def test_equal_losses_leave_room_for_a_thousandth():
    rules = guard.Rules(spike=5.0, warmup=2)
    assert seen([2.0] * 10 + [2.009], rules)[1] == [True] * 11
    assert seen([2.0] * 10 + [2.011], rules)[1] == [True] * 10 + [False]


def test_a_batch_without_weight_is_no_fault_and_teaches_nothing():
    step, state = stepper(train__ema_decay=0.9)
    state, _ = step(state, draw(0), KEY)
    got, metrics = step(state, {**draw(1), "weights": np.zeros(8, np.float32)}, KEY)
    assert float(metrics["discarded_in_a_row"][0]) == 0
    assert int(got.guard.accepted) == 1
    assert float(got.guard.mean) == float(state.guard.mean)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_discarded_step_leaves_no_trace(micro_batches):
    """Parameters, moments, average and task state are as before, bit for bit; the counts go on."""
    step, state = stepper(micro_batches=micro_batches, train__ema_decay=0.9)
    state, _ = step(state, draw(0), KEY)
    bad = {**draw(1), "y": draw(1)["y"] * np.float32(np.inf)}
    got, metrics = step(state, bad, KEY)
    assert float(metrics["nonfinite"][0]) > 0
    expected = state._replace(step=state.step + 1, data_index=state.data_index + 1, guard=got.guard)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert int(got.guard.row) == 1
    assert int(step(got, draw(2), KEY)[0].guard.row) == 0

"""Laws of the pure step: accumulation, weights, frozen leaves, keys, averages, state with rows."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.training import setup
from paperlab.training.paths import flatten
from paperlab.training.state import TrainState
from paperlab.training.step import make_train_step
from tests.training.tiny_task import INPUTS, ROWS, TinyTask, draw, tiny_config

KEY = jax.random.key(0)


@cache
def stepper(task_type=TinyTask, micro_batches=1, **changes):
    config, task = tiny_config(**changes), task_type()
    _, optimizer = setup.abstract_state(config, task, draw(0))
    state = jax.jit(lambda key: setup.initial_state(config, task, optimizer, key, draw(0)))(KEY)
    step = make_train_step(task, optimizer, micro_batches=micro_batches, ema_decay=config.train.ema_decay)
    return jax.jit(step), state


def assert_close(got, want, **tolerance):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, **{"rtol": 1e-5, "atol": 1e-6, **tolerance}), got, want)


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_accumulated_gradient_equals_that_of_the_big_batch(micro_batches):
    """The rows have weights 0 to 3, so a mean of means would differ; plain descent hides no factor."""
    plain = {"optim__name": "sgd", "optim__clip": 0.0}
    whole, state = stepper(**plain)
    split, _ = stepper(micro_batches=micro_batches, **plain)
    for index in range(3):
        want, want_metrics = whole(state, draw(index), KEY)
        got, got_metrics = split(state, draw(index), KEY)
        assert_close(got.params, want.params)
        for name in ("loss", "grad_norm"):
            assert_close(got_metrics[name], want_metrics[name])
        state = want


def test_mutable_state_is_threaded_through_micro_batches():
    split, state = stepper(micro_batches=4)
    got, metrics = split(state, draw(0), KEY)
    assert int(got.state["seen"]) == ROWS
    mean = np.zeros(INPUTS)
    for m in range(4):
        mean = 0.9 * mean + 0.1 * draw(0)["x"][m::4].mean(0)
    assert_close(got.state["mean"], mean)
    assert float(metrics["worst"][1]) == 4


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_projected_parameters_and_their_average_never_leave_the_bound(name):
    """Every step is the free one and then a cut, from the first state on; other leaves are those of a run without bounds."""
    free, start = stepper(optim__name=name, optim__lr=0.5, train__ema_decay=0.9)
    held, state = stepper(optim__name=name, optim__lr=0.5, train__ema_decay=0.9, optim__project=("hidden/kernel=0.3",))
    assert jnp.abs(start.params["hidden"]["kernel"]).max() > 0.5
    np.testing.assert_array_equal(
        state.params["hidden"]["kernel"], jnp.clip(start.params["hidden"]["kernel"], -0.3, 0.3)
    )
    for index in range(4):
        want = free(state, draw(index), KEY)[0].params
        state = held(state, draw(index), KEY)[0]
        want["hidden"]["kernel"] = jnp.clip(want["hidden"]["kernel"], -0.3, 0.3)
        assert_close(state.params, want)
        for tree in (state.params, state.ema):
            assert jnp.abs(tree["hidden"]["kernel"]).max() <= jnp.float32(0.3)
    assert (jnp.abs(state.params["hidden"]["kernel"]) == jnp.float32(0.3)).any()


def test_known_answer_of_one_plain_gradient_step():
    step, state = stepper(optim__name="sgd", optim__weight_decay=0.0, optim__clip=0.0, optim__schedule="constant")
    batch, task = draw(1), TinyTask()

    def mean_loss(params):
        error = (task.predict(params, batch["x"]) - batch["y"]) ** 2
        return (error * batch["weights"]).sum() / batch["weights"].sum()

    value, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    got, metrics = step(state, batch, KEY)
    assert_close(got.params, jax.tree.map(lambda p, g: p - 0.05 * g, state.params, grads))
    assert_close(metrics["loss"][0] / metrics["loss"][1], value)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    assert_close(metrics["grad_norm"][0], norm)
    assert int(got.step) == int(got.data_index) == 1


def test_clipping_bounds_the_step_and_weight_decay_spares_what_is_excluded():
    plain = {"optim__name": "sgd", "optim__schedule": "constant"}
    clipped, state = stepper(**plain, optim__clip=1e-3, optim__weight_decay=0.0)
    moved = jax.tree.map(lambda a, b: a - b, clipped(state, draw(0), KEY)[0].params, state.params)
    assert np.isclose(np.sqrt(sum(float((m**2).sum()) for m in jax.tree.leaves(moved))), 0.05 * 1e-3, rtol=1e-3)
    decayed, state = stepper(**plain, optim__clip=1e-30, optim__weight_decay=0.5)
    ones = state._replace(params=jax.tree.map(jnp.ones_like, state.params))
    for name, leaf in flatten(decayed(ones, draw(0), KEY)[0].params).items():
        np.testing.assert_allclose(leaf, 1.0 if name.endswith("bias") else 1 - 0.05 * 0.5, rtol=1e-6)


def test_batch_without_weight_changes_nothing_and_is_finite():
    step, state = stepper(optim__weight_decay=0.0)
    batch = {**draw(0), "weights": np.zeros(ROWS, np.float32)}
    got, metrics = step(state, batch, KEY)
    assert_close(got.params, state.params, rtol=0, atol=0)
    assert float(metrics["nonfinite"][0]) == 0


def test_nonfinite_entries_are_counted():
    step, state = stepper()
    batch = {**draw(0), "y": np.full(ROWS, np.nan, np.float32)}
    entries = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert float(step(state, batch, KEY)[1]["nonfinite"][0]) == entries + 1  # and the loss


def test_frozen_parameters_stay_and_have_no_moments():
    step, state = stepper(optim__freeze=("hidden/",))
    assert not any("hidden" in name for name in flatten(state.opt_state))
    got, _ = step(state, draw(0), KEY)
    assert_close(got.params["hidden"], state.params["hidden"], rtol=0, atol=0)
    assert float(jnp.abs(got.params["out"]["kernel"] - state.params["out"]["kernel"]).max()) > 0


def test_learning_rate_groups_scale_the_step():
    free, state = stepper(optim__weight_decay=0.0)
    grouped, _ = stepper(optim__weight_decay=0.0, optim__lr_groups=("out/kernel=0.5", "kernel=0"))
    one, other = (step(state, draw(0), KEY)[0].params for step in (free, grouped))
    assert_close(other["hidden"]["kernel"], state.params["hidden"]["kernel"], rtol=0, atol=0)
    assert_close(
        other["out"]["kernel"] - state.params["out"]["kernel"],
        0.5 * (one["out"]["kernel"] - state.params["out"]["kernel"]),
    )
    assert_close(other["out"]["bias"], one["out"]["bias"])


def test_moving_average_follows_its_equation():
    step, state = stepper(train__ema_decay=0.9)
    ema = state.ema
    for index in range(3):
        state, _ = step(state, draw(index), KEY)
        d = min(0.9, (1 + index) / (10 + index))
        ema = jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * p, ema, state.params)
    assert_close(state.ema, ema)


class NoisyTask(TinyTask):
    def loss(self, params, state, batch, key, step):
        total, weight, aux = super().loss(params, state, batch, key, step)
        return total, weight, {**aux, "metrics": {"draw": (jax.random.uniform(key), jnp.ones(()))}}


def test_key_is_a_function_of_run_key_and_step_alone():
    step, state = stepper(NoisyTask)
    at = [float(step(state._replace(step=jnp.int32(s)), draw(0), KEY)[1]["draw"][0]) for s in (0, 1, 0)]
    other = float(step(state, draw(0), jax.random.key(1))[1]["draw"][0])
    assert at[0] == at[2]
    assert len({at[0], at[1], other}) == 3


class RowsTask(TinyTask):
    """Carries the running sum of inputs of every row: [2, rows], rows on axis 1."""

    row_state = ((r"^carry$", 1),)

    def init(self, key, batch):
        return super().init(key, batch)[0], {"carry": jnp.zeros((2, len(batch["y"]))), "seen": jnp.zeros((), jnp.int32)}

    def loss(self, params, state, batch, key, step):
        error = (self.predict(params, batch["x"]) + state["carry"][0] - batch["y"]) ** 2
        carry = state["carry"] + jnp.stack([batch["x"].sum(-1), batch["y"]])
        return error.sum(), 1.0 * len(error), {"metrics": {}, "state": {"carry": carry, "seen": state["seen"] + 1}}


def test_micro_batches_take_their_own_rows_of_the_state():
    whole, state = stepper(RowsTask)
    split, other = stepper(RowsTask, micro_batches=4)
    for index in range(2):
        state, want = whole(state, draw(index), KEY)
        other, got = split(other, draw(index), KEY)
    assert_close(other.state["carry"], state.state["carry"])
    assert_close((got["loss"], other.params), (want["loss"], state.params), rtol=1e-4)
    assert int(other.state["seen"]) == 8


def test_state_is_a_tree_of_named_parts():
    assert TrainState._fields == ("step", "data_index", "params", "state", "opt_state", "ema", "guard")

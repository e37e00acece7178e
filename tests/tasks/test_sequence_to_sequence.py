"""The tasks of pairs of rows and of pointers: what they ask, what they count, which models they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import base_config, resolve
from paperlab.data.synthetic.algorithmic import END
from paperlab.discovery import find
from paperlab.errors import ConfigError

ROOM = "papers.universal_transformer"
SMALL = {"width": 8, "hidden": 12, "heads": 2, "steps": 2}


def task_of(form="pair", task="sequence_to_sequence", model="seq2seq", **options):
    config = base_config(task=task, model="lm" if model == "lm" else f"{ROOM}.{model}")
    if model == "lm":
        config.model.update(mixer="gla", width=8, depth=1, heads=1)
    else:
        config.model.update(SMALL)
    extra = options.pop("model_options", {})
    config.model.update(extra)
    config.data.batch_size = 4
    if task == "sequence_to_sequence":
        config.task.form = form
    config.task.update({"validation_examples": 8, **options})
    return find("tasks", task).make(resolve(config))


def mean(pair):
    return float(pair[0] / pair[1])


def test_symbols_and_whole_rows_are_counted():
    task = task_of(problem="reverse")
    batch = task.data("train")[0]
    right = jax.nn.one_hot(jnp.asarray(batch["targets"]), task.vocab_size) * 50
    found = task.metrics(right, batch)
    assert mean(found["accuracy"]) == mean(found["sequence_accuracy"]) == 1
    wrong = right.at[0, 0].set(jax.nn.one_hot(0, task.vocab_size))
    found = task.metrics(wrong, batch)
    np.testing.assert_allclose(mean(found["accuracy"]), 1 - 1 / batch["weights"].sum(), rtol=1e-6)
    assert mean(found["sequence_accuracy"]) == 0.75
    np.testing.assert_allclose(mean(task.metrics(0 * right, batch)["loss"]), np.log(task.vocab_size), rtol=1e-6)


def test_a_loss_has_the_cost_of_pondering_and_a_slope():
    task = task_of(model_options={"recurrence": "act", "halting": "accumulated", "dropout": 0.1})
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)
    (total, (weight, aux)), slopes = jax.jit(
        jax.value_and_grad(
            lambda p: (lambda t, w, aux: (t, (w, aux)))(*task.loss(p, state, batch, jax.random.key(1), 0)), has_aux=True
        )
    )(params)
    plain = mean(aux["metrics"]["loss"])
    assert float(total / weight) - plain > 0.01  # n + R is above 1 on both sides, its weight 0.01
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(slopes))
    assert mean(aux["metrics"]["ponder_encoder"]) >= 1


def test_a_language_model_that_ponders_pays_for_it_in_one_row_too():
    def excess(weight):
        options = {"recurrence": "act", "halting": "accumulated", "halting_weight": weight}
        task = task_of("prefix", model="decoder", model_options=options)
        batch = task.data("train")[0]
        params, state = task.init(jax.random.key(0), batch)
        total, count, aux = jax.jit(task.loss)(params, state, batch, jax.random.key(1), 0)
        return float(total / count) - mean(aux["metrics"]["loss"])

    assert abs(excess(0.0)) < 1e-5
    assert excess(0.1) > 0.1


def test_what_a_model_writes_itself_is_counted_too():
    task = task_of(problem="copy", decode=True, longest=5)
    batch = next(iter(task.data("length_5")))
    assert batch["targets"].shape == (4, 6)
    assert (batch["targets"][:, 5] == END).all()
    params, state = task.init(jax.random.key(0), batch)
    said = jax.jit(lambda p: task.decode(p, batch["source"], batch["source_valid"], 6))(params)
    token, want = np.zeros((4, 1), np.int32), []
    for _ in range(6):
        logits, _ = task.model.apply(params, batch["source"], token, source_valid=batch["source_valid"])
        newest = np.asarray(logits[:, -1].argmax(-1))
        want.append(newest)
        token = np.concatenate([token, newest[:, None]], 1).astype(np.int32)
    want = np.stack(want, 1)
    ended = np.cumsum(want == END, 1) - (want == END) > 0
    np.testing.assert_array_equal(said, np.where(ended, 0, want))
    found = jax.jit(task.evaluate)(params, state, batch)
    assert {"decoded_accuracy", "decoded_sequence_accuracy"} <= set(found)


@pytest.mark.parametrize("model", ["lm", "decoder"])
def test_a_language_model_takes_both_rows_in_one(model):
    task = task_of("prefix", model=model, problem="reverse")
    batch = task.data("train")[0]
    for tokens, targets, weights in zip(batch["tokens"], batch["targets"], batch["weights"], strict=True):
        n = list(tokens).index(END)
        assert list(targets[n : 2 * n + 1]) == [*tokens[:n][::-1], END]
        assert weights.sum() == n + 1
        assert weights[n]
    params, state = task.init(jax.random.key(0), batch)
    total, weight, _ = jax.jit(task.loss)(params, state, batch, jax.random.key(1), 0)
    assert 0 < float(total / weight) < 20
    with pytest.raises(ConfigError, match="form"):
        _ = task_of("pair", model="decoder").model


def test_pointers_ask_the_last_place_and_rows_take_their_own_steps():
    task = task_of(task="pointer_chasing", model="encoder", model_options={"words": 2, "steps": 3}, nodes=5)
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)
    deep = {**batch, "hops": np.full(4, 2, np.int32)}
    shallow = {**batch, "hops": np.full(4, 1, np.int32)}
    losses = [
        mean(task.evaluate(params, state, rows)["loss"]) for rows in (deep, shallow, {**deep, "hops": deep["hops"] + 7})
    ]
    assert losses[0] == losses[2] != losses[1]
    assert (task.data("hops_6")[0]["hops"] == 6).all()
    with pytest.raises(ConfigError, match="words"):
        _ = task_of(task="pointer_chasing", model="encoder").model


@pytest.mark.parametrize(("task", "split"), [("sequence_to_sequence", "hops_3"), ("pointer_chasing", "length_3")])
def test_a_split_that_there_is_not_is_refused(task, split):
    config = base_config(task=task, model=f"{ROOM}.seq2seq")
    config.evaluators.val.split = split
    with pytest.raises(ConfigError, match="evaluators"):
        find("tasks", task).check(config)

"""The language-modelling task: what its numbers mean, and what is carried from batch to batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import ConfigError, load_experiment, resolve
from paperlab.discovery import find
from paperlab.tasks import language_modelling


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"document {i} " + "abc " * (5 + 3 * i))
    return tmp_path


def task_of(folder, variant="", **changes):
    config = load_experiment(f"experiments/gla.py:{variant}")
    config.model.update(width=16, depth=2, heads=2)
    config.data.update(path=str(folder), sequence_length=24, batch_size=2, validation_share=0.3)
    for section, values in changes.items():
        config[section].update(values)
    config = resolve(config)
    return find("tasks", config.task.name).make(config)


def test_a_model_that_knows_nothing_pays_log2_of_the_vocabulary_a_predicted_token(folder):
    task = task_of(folder)
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)
    blank = jax.tree.map(jnp.zeros_like, params)
    total, weight, aux = jax.jit(task.loss)(blank, state, batch, jax.random.key(1), 0)
    np.testing.assert_allclose(total / weight, math.log(257), rtol=1e-6)
    assert weight == batch["weights"].sum()
    bits, size = aux["metrics"]["bits_per_byte"]
    np.testing.assert_allclose(bits / size, math.log2(257), rtol=1e-6)


def test_evaluation_counts_every_validation_byte_once(folder):
    task = task_of(folder)
    params, state = task.init(jax.random.key(0), task.data("train")[0])
    dataset = task.data("validation")
    evaluate = jax.jit(task.evaluate)
    counted = sum(float(evaluate(params, state, dataset[i])["bits_per_byte"][1]) for i in range(len(dataset)))
    assert counted == task.corpus.summary()["validation"]["bytes"]


def test_carried_state_reads_on_where_the_last_batch_ended(folder):
    task = task_of(folder, "tbptt")
    dataset = task.data("train")
    params, state = task.init(jax.random.key(0), dataset[0])
    params = jax.tree.map(lambda x: x * 3, params)
    loss = jax.jit(task.loss)
    parts = []
    for i in range(3):
        total, weight, aux = loss(params, state, dataset[i], jax.random.key(0), i)
        parts.append((total, weight))
        state = aux["state"]
    joined = {k: np.concatenate([dataset[i][k] for i in range(3)], 1) for k in dataset[0]}
    whole, weight, _ = loss(params, task.init(jax.random.key(0), dataset[0])[1], joined, jax.random.key(0), 0)
    np.testing.assert_allclose(sum(t for t, _ in parts), whole, rtol=1e-5)
    assert sum(w for _, w in parts) == weight
    cold = [loss(params, task.init(jax.random.key(0), dataset[0])[1], dataset[i], None, 0)[0] for i in range(3)]
    assert abs(sum(cold) - whole) > 1e-3


def test_no_gradient_crosses_the_border_of_a_batch(folder):
    task = task_of(folder, "tbptt")
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)

    def last(params):
        return sum(
            jnp.sum(x) for x in jax.tree.leaves(task.loss(params, state, batch, None, 0)[2]["state"]) if x.ndim > 2
        )

    gradient = jax.jit(jax.grad(last))(params)
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_what_is_watched_is_reported_and_changes_nothing_else(folder):
    """The Newton residual of ParaRNN's layers; what no layer shows is refused by name."""
    recurrent = {"model": {"mixer": "pararnn"}, "mixers": {"pararnn": {"mode": "parallel"}}}
    plain, told = (task_of(folder, task={"watch": watch}, **recurrent) for watch in ((), ("residual", "iterations")))
    batch = plain.data("train")[0]
    params, state = plain.init(jax.random.key(0), batch)
    results = [jax.jit(t.loss)(params, state, batch, jax.random.key(1), 0) for t in (plain, told)]
    (want, _, quiet), (got, _, loud) = results
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert set(loud["metrics"]) - set(quiet["metrics"]) == {"residual", "iterations"}
    residual, entries = loud["metrics"]["residual"]
    assert 0 < residual / entries < 1e-4
    assert entries == 2 * len(batch["tokens"]), "layers times rows"
    assert loud["metrics"]["iterations"][0] / entries == 3
    with pytest.raises(
        ConfigError, match=r"config.task.watch='residul': no layer of this model shows it; there are .*residual"
    ):
        task_of(folder, task={"watch": ("residul",)}, **recurrent).evaluate(params, state, batch)


def test_carrying_state_needs_contiguous_rows(folder):
    with pytest.raises(ConfigError, match="contiguous"):
        task_of(folder, task={"carry_state": True})


def test_batch_spec_is_what_the_data_gives(folder):
    for variant in ("", "tbptt"):
        task = task_of(folder, variant)
        batch = task.data("train")[0]
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in task.batch_spec().items()
        }


def test_recall_counts_only_the_answers():
    config = load_experiment("experiments/gla.py:mqar")
    config.model.update(width=16, depth=1)
    config.data.batch_size = 4
    config = resolve(config)
    task = find("tasks", config.task.name).make(config)
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)
    _, weight, aux = jax.jit(task.loss)(params, state, batch, jax.random.key(1), 0)
    assert weight == 4 * config.task.num_pairs
    assert set(aux["metrics"]) == {"loss", "accuracy"}


def test_a_prediction_is_right_where_argmax_is_the_target():
    logits = jax.random.randint(jax.random.key(0), (4, 50, 7), 0, 4).astype(jnp.float32)  # ties almost everywhere
    targets = jax.random.randint(jax.random.key(1), (4, 50), 0, 7)
    found = language_modelling._is_argmax(logits, targets)
    np.testing.assert_array_equal(found, logits.argmax(-1) == targets)
    assert 0 < found.sum() < (logits.max(-1) == jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]).sum()

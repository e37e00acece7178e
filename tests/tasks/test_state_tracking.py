"""The state-tracking task: what it asks, what it counts, and at what length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import base_config, resolve
from paperlab.discovery import find
from paperlab.errors import ConfigError


def task_of(**options):
    config = base_config(task="state_tracking")
    config.model.update(mixer="attention", width=8, depth=1, heads=1)
    config.data.update(sequence_length=6, batch_size=4)
    config.task.update(options)
    return find("tasks", "state_tracking").make(resolve(config))


def test_the_last_position_is_counted_apart():
    task = task_of(group="S3")
    batch = task.data("train")[0]
    targets = jnp.asarray(batch["targets"])
    logits = jax.nn.one_hot(targets, 6).at[:2, -1].set(jax.nn.one_hot((targets[:2, -1] + 1) % 6, 6))
    found = {name: float(a / b) for name, (a, b) in task.metrics(logits, jnp.zeros((4, 6)), batch).items()}
    assert set(found) == {"loss", "accuracy", "last_accuracy"}
    np.testing.assert_allclose([found["accuracy"], found["last_accuracy"]], [1 - 2 / 24, 0.5])


def test_the_vocabulary_is_the_group_and_every_position_is_asked():
    task = task_of(group="S3")
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)
    total, weight, _ = jax.jit(task.loss)(jax.tree.map(jnp.zeros_like, params), state, batch, jax.random.key(1), 0)
    assert task.vocab_size == 6
    assert weight == 24
    np.testing.assert_allclose(total / weight, np.log(6), rtol=1e-6)
    assert task.summary() == {"baselines": {"chance_accuracy": 1 / 6}}
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in task.batch_spec().items()
    }


def test_validation_words_may_be_longer_than_those_of_training():
    task = task_of(validation_length=20, validation_examples=6)
    assert task.data("train")[0]["tokens"].shape == (4, 6)
    assert task.data("validation")[0]["tokens"].shape == (4, 20)
    assert len(task.data("validation")) == 2
    assert task_of().data("validation")[0]["tokens"].shape == (4, 6)


@pytest.mark.parametrize(
    ("options", "message"), [({"group": "S9"}, "config.task.group='S9'"), ({"alphabet": "al"}, "config.task.alphabet")]
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        task_of(**options)

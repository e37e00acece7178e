"""Tasks made of integers: each serves what its data section says, asks what it says, and knows what guessing scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import base_config, resolve
from paperlab.discovery import find

TASKS = {
    "keep_nth": ({"vocab_size": 7, "keep": 3}, 7, 1, 1 / 7),
    "k_hop": ({"vocab_size": 3, "hops": 2}, 3, 1, 1 / 3),
    "state_tracking": ({"group": "D4"}, 8, 16, 1 / 8),
    "recall": ({"vocab_size": 20, "num_pairs": 2}, 20, 2, 1 / 10),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_of_integers(name):
    options, vocabulary, asked, chance = TASKS[name]
    config = base_config(task=name)
    config.model.update(mixer="attention", width=8, depth=1, heads=1)
    config.data.update(sequence_length=16, batch_size=4)
    config.task.update(options)
    task = find("tasks", name).make(resolve(config))
    batch = task.data("train")[1]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in task.batch_spec().items()
    }
    params, state = task.init(jax.random.key(0), batch)
    guessing = jax.tree.map(jnp.zeros_like, params)
    total, weight, aux = jax.jit(task.loss)(guessing, state, batch, jax.random.key(1), 0)
    assert task.vocab_size == vocabulary
    assert weight == 4 * asked
    np.testing.assert_allclose(total / weight, np.log(vocabulary), rtol=1e-5)
    assert {"loss", "accuracy"} <= set(aux["metrics"]) <= {"loss", "accuracy", "last_accuracy"}
    assert task.summary()["baselines"]["chance_accuracy"] == chance
    assert task.tokenizer is None
    halves = [task.data("train", process, 2)[1]["tokens"] for process in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), batch["tokens"])
    assert len(task.data("validation")) == config.task.validation_examples // 4


def test_two_hops_often_lead_back_to_the_current_symbol():
    config = base_config(task="k_hop")
    config.model.update(mixer="attention", width=8, depth=1, heads=1)
    config.task.update(vocab_size=5, hops=2)
    task = find("tasks", "k_hop").make(resolve(config))
    np.testing.assert_allclose(task.summary()["baselines"]["repeat_accuracy"], 0.52, atol=0.03)

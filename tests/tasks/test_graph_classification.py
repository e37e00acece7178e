"""Classification of graphs: what is counted, and that neither devices nor micro-batches change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import resolve
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.papers.plstm import graph_recipes
from paperlab.tasks import graph_classification
from tests.training.test_mesh import first_losses


def config_of(mesh=(1, 1, 1), **train):
    config = graph_recipes.graph()
    config.model.update(width=8, heads=2, double_blocks=1, modes="D")
    config.data.update(train_graphs=64, test_graphs=16, batch_size=16, shortest=3, longest=5)
    config.mesh.update(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
    config.train.update(train)
    return config


def task_of(config):
    config = resolve(config)
    return find("tasks", config.task.name).make(config)


def test_losses_are_those_of_one_device_whatever_the_mesh():
    single, mesh = config_of(), config_of((2, 2, 2))
    wanted = first_losses(resolve(single), task_of(single), steps=2)[0]
    losses, state, compilations = first_losses(resolve(mesh), task_of(mesh), steps=2)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert compilations == 1
    q = state.params["params"]["blocks"]["D"]["layer"]["q"]["kernel"]
    assert q.addressable_shards[0].data.size * 4 == q.size


def test_rows_follow_the_mesh_and_the_micro_batches():
    assert graph_classification.rows_of(config_of()) == 1
    assert graph_classification.rows_of(config_of((2, 2, 2))) == 4
    assert graph_classification.rows_of(config_of((2, 1, 1), micro_batches=4)) == 8
    assert graph_classification.rows_of(config_of((-1, 1, 1))) == jax.device_count()
    stated = config_of()
    stated.data.rows = 8
    assert graph_classification.rows_of(stated) == 8
    stated.train.micro_batches = 16
    with pytest.raises(ConfigError, match=r"config.data.rows=8 is no multiple of config.train.micro_batches=16"):
        resolve(stated)


def test_what_is_counted():
    """Losses and accuracies by hand; places without a graph count nothing; smoothing is in the loss alone."""
    logits = jnp.array([[[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]]])
    batch = {"labels": jnp.array([[0, 0, 1]]), "weights": jnp.array([[1.0, 1.0, 0.0]])}
    config = config_of()
    config.task.label_smoothing = 0.2
    task = task_of(config)
    nll = np.array([np.log1p(np.exp(-2.0)), np.log1p(np.exp(1.0))])
    total, weight = task.metrics(logits, batch)["loss"]
    assert float(total) == pytest.approx(nll.sum(), rel=1e-6)
    assert float(weight) == 2
    right, weight = task.metrics(logits, batch)["accuracy"]
    assert (float(right), float(weight)) == (1, 2)

    class Fixed:
        def apply(self, params, batch, rngs=None):
            return logits

    task.__dict__["model"] = Fixed()
    total, _, aux = task.loss({}, {}, batch, jax.random.key(0), jnp.zeros(()))
    even = np.array([nll[0] + np.log1p(np.exp(2.0)), nll[1] + np.log1p(np.exp(-1.0))]) / 2
    assert float(total) == pytest.approx(0.8 * nll.sum() + 0.2 * even.sum(), rel=1e-6)
    assert float(aux["metrics"]["loss"][0]) == pytest.approx(nll.sum(), rel=1e-6)


def test_what_is_known_without_training():
    summary = task_of(config_of()).summary()
    assert summary["graphs"] == {"train": 64, "validation": 16, "test": 16, "extrapolation": 16}
    assert summary["steps_of_an_epoch"] == 4
    assert 0.2 <= summary["baselines"]["most_frequent_class_accuracy"] <= 0.8


def test_an_absent_set_is_taken_for_what_the_config_says():
    task = task_of(graph_recipes.full_tu("MUTAG"))
    spec = task.batch_spec()
    assert spec["nodes"].shape[-1] == 7
    assert spec["beside"].shape[-1] == 4
    assert spec["labels"].shape[0] * spec["labels"].shape[1] == 64
    with pytest.raises(ConfigError, match="is no folder"):
        task.data("train")

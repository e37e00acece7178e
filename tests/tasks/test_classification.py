"""Classification: what its losses and metrics count, with any model of images, statistics of batches included."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import base_config, resolve
from paperlab.data import images
from paperlab.tasks import classification


def task_of(**changes):
    config = base_config(task="classification", model="vit")
    config.model.update(patch=4, width=8, depth=1, heads=2, drop_path=0.5)
    config.data.batch_size = 8
    for section, values in changes.items():
        config[section].update(values)
    return classification.make(resolve(config))


def batch_of(labels, partners=None, shares=None, weights=None):
    rows = len(labels)
    labels = np.array(labels, np.int32)
    return {
        "labels": labels,
        "partners": labels if partners is None else np.array(partners, np.int32),
        "shares": np.ones(rows, np.float32) if shares is None else np.array(shares, np.float32),
        "weights": np.ones(rows, np.float32) if weights is None else np.array(weights, np.float32),
    }


def test_a_model_that_knows_nothing_pays_the_entropy_of_the_classes():
    for loss, known in (("softmax", math.log(10)), ("binary", math.log(2))):
        task = task_of(task={"loss": loss})
        batch = task.data("train")[0]
        params, state = task.init(jax.random.key(0), batch)
        blank = jax.tree.map(jnp.zeros_like, params)
        total, weight, aux = jax.jit(task.loss)(blank, state, batch, jax.random.key(1), 0)
        np.testing.assert_allclose(total / weight, known, rtol=1e-6)
        assert (weight, aux["state"]) == (8, {})


def test_mixed_and_smoothed_targets_by_hand():
    logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    batch = batch_of([0, 1], [2, 0], [0.75, 0.25], [1, 2])
    p = np.exp(logits - jax.nn.logsumexp(logits, -1, keepdims=True))
    t = np.array([[0.75, 0, 0.25], [0.75, 0.25, 0]]) * 0.9 + 0.1 / 3
    soft = task_of(task={"label_smoothing": 0.1}).metrics(logits, batch)
    np.testing.assert_allclose(soft["loss"][0], (-(t * np.log(p)).sum(-1) * [1, 2]).sum(), rtol=1e-5)
    assert soft["loss"][1] == 3
    s = np.array(jax.nn.sigmoid(logits))
    for hard, u in ((True, np.array([[1, 0, 1], [1, 1, 0]])), (False, np.array([[0.75, 0, 0.25], [0.75, 0.25, 0]]))):
        found = task_of(task={"loss": "binary", "hard_targets": hard}).metrics(logits, batch)
        each = -(u * np.log(s) + (1 - u) * np.log(1 - s)).mean(-1)
        np.testing.assert_allclose(found["loss"][0], (each * [1, 2]).sum(), rtol=1e-5)
    assert soft["accuracy"] == (1.0, 3.0)  # row 0 counts as 0, row 1 as 0, whose logit is not the largest


def test_top_1_is_argmax_and_top_5_the_first_five():
    logits = jax.random.randint(jax.random.key(0), (200, 9), 0, 4).astype(jnp.float32)  # ties almost everywhere
    labels = np.asarray(jax.random.randint(jax.random.key(1), (200,), 0, 9))
    found = task_of().metrics(logits, batch_of(labels))
    assert found["accuracy"][0] == (np.asarray(logits.argmax(-1)) == labels).sum()
    order = np.argsort(-np.asarray(logits), axis=-1, kind="stable")[:, :5]
    assert found["top5_accuracy"][0] == (order == labels[:, None]).any(-1).sum()
    assert set(task_of().metrics(logits[:, :5], batch_of(labels % 5))) == {"loss", "accuracy"}


def test_evaluation_counts_every_image_once_and_training_alone_is_random():
    task = task_of()
    dataset = task.data("validation")
    params, state = task.init(jax.random.key(0), dataset[0])
    evaluate = jax.jit(task.evaluate)
    sums = [evaluate(params, state, dataset[i])["loss"] for i in range(len(dataset))]
    assert sum(float(weight) for _, weight in sums) == task.images.source.count("validation")
    batch = task.data("train")[0]
    losses = [float(task.loss(params, state, batch, jax.random.key(i), 0)[0]) for i in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert float(evaluate(params, state, batch)["loss"][0]) not in losses


def test_images_are_normalised_by_the_data_section_and_tokens_are_not():
    for normalize, low, high in (("none", 0, 1), ("half", -1, 1)):
        task = task_of(data={"normalize": normalize})
        found = task.normalised(jnp.array([[[[0], [255]]]], jnp.uint8))
        np.testing.assert_allclose(found.ravel(), [low, high], atol=1e-6)
        assert found.dtype == jnp.float32
    task = task_of(data={"source": "shapes", "normalize": "imagenet"})
    white = task.normalised(jnp.full((1, 1, 1, 3), 255, jnp.uint8))
    np.testing.assert_allclose(white.ravel(), (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-6)
    tokens = jnp.full((1, 1, 1, 4), 0.3)
    assert task_of(data={"source": "arrow_tokens"}).normalised(tokens) is tokens


@pytest.mark.parametrize("source", ["digits", "shapes", "arrow", "arrow_tokens"])
def test_batch_spec_is_what_the_data_gives(source):
    task = task_of(data={"source": source, "batch_size": 2})
    batch = task.data("train")[0]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in task.batch_spec().items()
    }
    shape, dtype = images.spec(task.config.data, "validation")
    held = task.data("validation")[0]["images"]
    assert (held.shape, held.dtype) == (shape, dtype)


def test_a_position_table_is_made_for_the_size_that_is_said():
    task = task_of(model={"position": "learned"}, task={"init_size": 16}, data={"size": 8})
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)
    assert params["params"]["position"]["table"].shape[:2] == (4, 4)
    assert task.logits(params, state, batch["images"]).shape == (8, 10)


class WithStatistics(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


def test_statistics_of_batches_are_state():
    task = task_of()
    task.model = WithStatistics()
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)
    assert set(state) == {"batch_stats"}
    _, _, aux = jax.jit(task.loss)(params, state, batch, jax.random.key(1), 0)
    mean = task.normalised(batch["images"]).reshape(8, -1).mean(0) / 2
    np.testing.assert_allclose(aux["state"]["batch_stats"]["BatchNorm_0"]["mean"], mean, atol=1e-6)
    before, after = (task.evaluate(params, s, batch)["loss"][0] for s in (state, aux["state"]))
    assert before != after
    assert task.flops_per_batch(params) == 3 * 2 * 8 * 64 * 10


def test_predictions_are_drawn(tmp_path):
    for source in ("digits", "arrow_tokens"):
        task = task_of(data={"source": source, "evaluation_examples": 8})
        params, state = task.init(jax.random.key(0), task.data("train")[0])
        assert task.show(params, state, tmp_path) == {"predictions": "predictions.png"}
        assert (tmp_path / "predictions.png").stat().st_size > 5000
    summary = task_of().summary()
    assert summary["images"]["examples"] == {"train": 1438, "validation": 359}
    assert summary["baselines"]["logistic_accuracy"] > 0.9

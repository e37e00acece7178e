"""pLSTM on images: the published sizes, the recipes, and an honest comparison on arrow pointing."""

import re

import jax
import numpy as np
import pytest

from paperlab.config import load_experiment, resolve
from paperlab.data.images import size_of
from paperlab.discovery import find
from paperlab.evidence import Laboratory
from paperlab.papers.plstm import arrow
from paperlab.training import replicas
from paperlab.training.optimizer import make_optimizer, make_schedule
from paperlab.training.replicas import Replicas


def recipe(variant):
    config = resolve(load_experiment(f"experiments/plstm.py:{variant}"))
    task = find("tasks", config.task.name).make(config)
    return config, task, jax.eval_shape(task.init, jax.random.key(0), task.batch_spec())[0]


@pytest.mark.parametrize(
    ("size", "millions", "gflop", "epochs", "lr", "drop_path"),
    [("t", 6, 1.4, 800, 4e-3, 0.0), ("s", 23, 4.9, 400, 4e-3, 0.05), ("b", 89, 18.2, 400, 3e-3, 0.1)],
)
def test_the_published_sizes_and_recipes(size, millions, gflop, epochs, lr, drop_path):
    config, task, params = recipe(f"full_imagenet_{size}")
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    assert round(count) == millions
    assert size == "t" or abs(count / millions - 1) < 0.02
    flops = (
        task.model.forward_flops(params, (1, 224, 224, 3)) / 2e9
    )  # the paper counts a multiplication and addition as one
    assert abs(flops / gflop - 1) < 0.12
    assert config.train.steps == pytest.approx(epochs * 1_281_167 / 2048, abs=1)
    assert config.optim.name == "lamb"
    assert config.model.drop_path == drop_path
    schedule = make_schedule(config.optim, config.train.steps)
    assert float(schedule(round(config.optim.warmup * config.train.steps))) == pytest.approx(lr, rel=0.01)
    assert make_optimizer(config.optim, config.train.steps, params) is not None
    tuned, _, same = recipe(f"finetune_{size}")
    assert jax.tree.map(lambda a: a.shape, same) == jax.tree.map(lambda a: a.shape, params)
    assert size_of(tuned.data) == 224


def test_weights_alone_decay():
    config, _, params = recipe("full_arrow")
    spared = re.compile(config.optim.decay_exclude[0])
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    assert {name.rsplit("/", 1)[-1] for name in names if not spared.search(name)} == {"kernel"}
    assert config.train.steps == 39_062
    assert config.optim.warmup * config.train.steps == pytest.approx(100_000 / 128, abs=1)


def test_the_arms_of_arrow_pointing_differ_in_what_they_are_called_after():
    ours, without, theirs = (arrow.config_of(arm, arrow.IMAGES) for arm in ("plstm", "no_position", "vit"))
    for section in ("data", "optim", "train", "task", "evaluators"):
        assert ours[section] == without[section] == theirs[section]
    changed = {name for name in ours.model if ours.model[name] != without.model[name]}
    assert changed == {"position"}
    assert theirs.model.layer_scale == 1.0
    for name in ("patch", "width", "depth", "heads", "dtype", "position"):
        assert ours.model[name] == theirs.model[name]
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0), task.batch_spec())[0]))
        for task in (find("tasks", "classification").make(config) for config in (ours, theirs))
    ]
    assert abs(counts[0] / counts[1] - 1) < 0.15


def test_an_arm_is_read_at_its_best_rate(tmp_path, monkeypatch):
    asked = []

    def train(task, config, seeds, *, lrs, evaluate, chunk):
        asked.append(lrs[0])
        right = {1e-3: 0.6, 3e-3: 0.9, 1e-2: 0.7}[lrs[0]]
        names = [f"{split}_{metric}" for split in evaluate for metric in ("accuracy", "loss")]
        values = {name: np.full(len(seeds), right if name.startswith("validation") else 1 - right) for name in names}
        return Replicas({}, {}, {}, {config.train.steps: values})

    monkeypatch.setattr(replicas, "train_replicas", train)
    lab = Laboratory(tmp_path)
    scale = arrow.TOKENS._replace(rates=(1e-3, 3e-3, 1e-2))
    found = arrow.scores(lab, "tokens", scale)
    assert asked == [1e-3, 3e-3, 1e-2]
    assert found["rate"] == 3e-3
    np.testing.assert_allclose(found["test_accuracy"], 0.1)
    assert found["by_rate"]["0.01"] == [0.7] * 3
    outcome = arrow.falling_loss(lab, scale)
    assert asked[3:] == [1e-3, 3e-3, 1e-2]  # those of the transformer: an arm is trained once
    assert outcome.value == pytest.approx(0.9)
    assert arrow.CLAIMS[0].threshold.holds(0.69, outcome.baseline)
    assert not arrow.CLAIMS[0].threshold.holds(0.694, outcome.baseline)


def products(jaxpr):
    """Axes of every operand of a matrix product, in inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield max(len(v.aval.shape) for v in (*equation.invars, *equation.outvars))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from products(inner)


def test_seeds_train_side_by_side_without_products_of_eight_axes():
    config = arrow.config_of("tokens", arrow.TOKENS)
    task = find("tasks", config.task.name).make(config)
    batch = task.batch_spec()
    params, state = jax.eval_shape(task.init, jax.random.key(0), batch)
    three = jax.tree.map(lambda a: jax.ShapeDtypeStruct((3, *a.shape), a.dtype), params)

    def loss(params, batch):
        return task.loss(params, state, batch, jax.random.key(0), 0)[0]

    axes = list(products(jax.make_jaxpr(jax.vmap(jax.grad(loss), in_axes=(0, None)))(three, batch).jaxpr))
    assert len(axes) > 20
    assert max(axes) < 8  # XLA aborts the process on a CPU

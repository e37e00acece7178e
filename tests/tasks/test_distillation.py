"""Distillation: the loss by hand, and a student that learns what its teacher says with statistics of batches on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paperlab
from paperlab.config import base_config, resolve
from paperlab.errors import ConfigError
from paperlab.tasks import distillation
from paperlab.tasks.distillation import soft_cross_entropy
from paperlab.training.checkpoint import Checkpoints, restore_state


def config_of(name="classification", **changes):
    config = base_config(task=name, model="vit")
    config.model.update(patch=4, width=8, depth=1, heads=2)
    config.data.batch_size = 16
    config.train.update(steps=4, checkpoint_every=4, log_every=2)
    config.optim.lr = 0.01
    config.evaluators.val.update(every=4, batches=1)
    config.checkpoint.update(best_metric="val_accuracy", best_mode="max")
    for section, values in changes.items():
        config[section].update(values)
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return paperlab.train(config_of(), tmp_path_factory.mktemp("teacher"))


def student_of(run, **changes):
    return distillation.make(resolve(config_of("distillation", task={"teacher": str(run.workdir), **changes})))


def test_the_loss_by_hand():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        s, t = jnp.asarray(rng.normal(size=(5, 11))), jnp.asarray(rng.normal(size=(5, 11)))
        p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (np.asarray(t), np.asarray(s)))
        np.testing.assert_allclose(soft_cross_entropy(s, t, 2.0), -(p * np.log(q)).sum(-1), rtol=1e-12)
        entropy = -(p * np.log(p)).sum(-1)
        np.testing.assert_allclose(soft_cross_entropy(t, t, 2.0), entropy, rtol=1e-12)
        assert (soft_cross_entropy(s, t, 2.0) > entropy).all()
        slope = jax.grad(lambda x: soft_cross_entropy(x, t).sum())(t + 3.0)
        np.testing.assert_allclose(slope, np.zeros_like(p), atol=1e-14)


def test_a_run_learns_from_another(teacher, tmp_path):
    config = config_of("distillation", task={"teacher": str(teacher.workdir), "temperature": 2.0}, model={"width": 4})
    run = paperlab.train(config, tmp_path / "student")
    assert set(run.state) == {"teacher"}
    jax.tree.map(np.testing.assert_array_equal, run.state["teacher"]["params"], teacher.params["params"])
    assert {"loss", "accuracy", "agreement"} <= set(run.metrics[0])
    batch = run.task.data("validation")[0]
    state = {"student": {}, **run.state}
    found = jax.jit(run.task.evaluate)(run.params, state, batch)
    theirs = teacher.task.logits(teacher.params, {}, batch["images"])
    ours = run.task.logits(run.params, state, batch["images"])
    want = soft_cross_entropy(ours, theirs, 2.0) * batch["weights"]
    np.testing.assert_allclose(found["loss"][0], want.sum(), rtol=1e-5)
    assert found["agreement"][0] == (ours.argmax(-1) == theirs.argmax(-1)).sum()


def test_only_the_student_learns(teacher):
    task = student_of(teacher)
    batch = task.data("train")[0]
    params, state = task.init(jax.random.key(0), batch)
    slopes = jax.grad(lambda p, s: task.loss(p, s, batch, jax.random.key(1), 0)[0], (0, 1))(params, state)
    assert all((np.abs(x) > 0).any() for x in jax.tree.leaves(slopes[0]["params"]["head"]))
    assert not any((np.abs(x) > 0).any() for x in jax.tree.leaves(slopes[1]))
    np.testing.assert_allclose(
        *(
            jax.tree.leaves(task.loss(params, state, {**batch, "labels": labels}, jax.random.key(1), 0)[0])[0]
            for labels in (batch["labels"], 0 * batch["labels"])
        )
    )


def test_statistics_of_batches_are_read_with_the_weights(tmp_path):
    saved = Checkpoints(tmp_path, config_of().checkpoint, say=print)
    tree = {"params": {"w": jnp.ones(3)}, "state": {"batch_stats": {"mean": jnp.arange(3.0)}}, "step": jnp.int32(1)}
    saved.save(1, tree, {"data_index": 1, "metrics": {}, "config": {}})
    saved.close()
    state, step = restore_state(tmp_path)
    assert step == 1
    np.testing.assert_array_equal(state["batch_stats"]["mean"], [0, 1, 2])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": ""}, "config.task.teacher='': name the work directory"),
        ({"teacher": "there/is/none"}, "config.task.teacher=there/is/none: "),
        ({"label_smoothing": 0.1}, "no label enters the loss of distillation"),
        ({"temperature": 0.0}, "config.task.temperature=0.0: must be above 0"),
    ],
    ids=str,
)
def test_what_is_asked_wrongly_is_named_in_one_line(teacher, changes, words):
    with pytest.raises(ConfigError) as failure:
        _ = student_of(teacher, **changes).teacher
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_teacher_of_other_classes_is_refused(teacher):
    config = config_of("distillation", task={"teacher": str(teacher.workdir)}, data={"source": "shapes"})
    with pytest.raises(ConfigError, match=r"it tells 10 classes, these images have \d+; name another run"):
        _ = distillation.make(resolve(config)).teacher

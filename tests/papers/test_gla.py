"""The room of GLA: the paper's recipes have the paper's sizes, and the baselines of the claims are honest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import gla
from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.papers.gla import numerics, trained
from paperlab.training.optimizer import make_schedule


def recipe(variant):
    config = resolve(load_experiment(f"experiments/gla.py:{variant}"))
    return config, find("tasks", config.task.name).make(config)


@pytest.mark.parametrize(
    ("variant", "parameters", "looked_up", "tokens", "batch", "warmup"),
    [
        ("full_340m", 340e6, 0, 15e9, 0.5e6, 0.5e9),
        ("full_1b3", 1.3e9, 32_000 * 2048, 100e9, 2e6, 1e9),
    ],
)
def test_the_paper_s_recipes(variant, parameters, looked_up, tokens, batch, warmup):
    config, task = recipe(variant)
    params, _ = jax.eval_shape(task.init, jax.random.key(0), task.batch_spec())
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) - looked_up
    assert abs(count / parameters - 1) < 0.02
    assert abs(task.tokens_per_batch / batch - 1) < 0.06
    assert abs(config.train.steps * task.tokens_per_batch / tokens - 1) < 0.06
    assert abs(config.optim.warmup * config.train.steps * task.tokens_per_batch / warmup - 1) < 0.06
    schedule = make_schedule(config.optim, config.train.steps)
    assert float(schedule(0)) == pytest.approx(3e-5, rel=0.02)
    assert float(schedule(round(config.optim.warmup * config.train.steps))) == pytest.approx(3e-4, rel=0.01)
    assert float(schedule(config.train.steps)) == pytest.approx(3e-5, rel=0.01)


def test_the_one_level_form_is_right_where_it_can_be():
    q, k, v, g = (jax.random.normal(key, (1, 16, 2, 8)) for key in jax.random.split(jax.random.key(0), 4))
    g = jax.nn.log_sigmoid(g) / 16
    np.testing.assert_allclose(numerics.one_level(q, k, v, g), gla(q, k, v, g, impl="recurrent")[0], atol=1e-5)


def test_every_arm_of_the_ablation_differs_in_its_gate_alone():
    configs = {arm: trained.ablation_config(arm).to_dict() for arm in trained.ARMS}
    gates = {arm: config["mixers"]["gla"].pop("gate") for arm, config in configs.items()}
    assert gates == dict(zip(trained.ARMS, ("none", "fixed", "scalar", "channel"), strict=True))
    for config in configs.values():
        config.pop("variant")
    assert all(config == configs["channel_gate"] for config in configs.values())


def test_long_windows_lie_in_one_document(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text("".join(f"{i}:{j} " for j in range(100)))
    config = load_experiment("experiments/gla.py")
    config.data.update(path=str(tmp_path), validation_share=0.5)
    task = find("tasks", "language_modelling").make(resolve(config))
    windows = trained.long_windows(task, 64, 8)
    assert windows.shape == (8, 65)
    for row in windows:
        text = bytes(row[row < 256].tolist()).decode()
        assert len({word.split(":")[0] for word in text.split(" ")[1:-1]}) == 1


def test_losses_by_position_are_those_of_the_task(tmp_path):
    config = load_experiment("experiments/gla.py")
    config.model.update(width=16, depth=1)
    config.data.sequence_length = 32
    task = find("tasks", "language_modelling").make(resolve(config))
    tokens = jax.random.randint(jax.random.key(0), (3, 33), 0, 256)
    params = task.model.init(jax.random.key(1), tokens[:1, :8])
    one = jax.tree.map(lambda x: x[None], params)
    ones = jnp.ones((3, 32))
    where = jnp.zeros((3, 32), jnp.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": ones, "bytes": ones}
    total, weight = jax.jit(task.evaluate)(params, {}, {**batch, "segment_ids": where, "positions": where})["loss"]
    np.testing.assert_allclose(trained._position_losses(task.model)(one, tokens).mean(), total / weight, rtol=1e-5)


def test_a_run_of_the_trainer_is_read_at_eight_times_its_length(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text("".join(f"{i}:{j} " for j in range(100)))
    config = load_experiment("experiments/gla.py")
    config.model.update(width=16, depth=1, unroll=1)
    config.mixers.gla.short_conv = False
    config.data.update(path=str(tmp_path), validation_share=0.5, sequence_length=16, batch_size=8)
    config.train.update(steps=2, checkpoint_every=0)
    config.mesh.data = 1
    outcome = trained.trained_and_stretched(resolve(config), windows=4)
    assert outcome.details == {"trained_at": 16, "windows": 4}
    assert 0.5 < outcome.value < 2

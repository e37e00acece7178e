"""Replicas under vmap are the runs that the trainer would make one by one."""

import jax
import numpy as np
import pytest

from paperlab.errors import ConfigError
from paperlab.training.loop import train
from paperlab.training.replicas import train_replicas
from paperlab.training.writers import read
from tests.training.tiny_task import TinyTask, tiny_config

SEEDS, RATES = [3, 11, 3], [0.05, 0.05, 0.01]


@pytest.fixture(scope="module")
def replicas():
    config = tiny_config(train__ema_decay=0.9)
    return train_replicas(TinyTask(), config, SEEDS, lrs=RATES, evaluate_every=4, chunk=3)


@pytest.mark.parametrize("r", range(3))
def test_replica_equals_the_run_of_its_seed_and_rate(tmp_path, replicas, r):
    seen = []
    config = tiny_config(train__ema_decay=0.9, seed=SEEDS[r], optim__lr=RATES[r], train__log_every=1)
    summary = train(config, tmp_path, TinyTask(), on_step=lambda _, state: seen.append(jax.device_get(state.ema)))
    close = {"rtol": 2e-4, "atol": 1e-5}
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, **close), replicas.replica(r), seen[-1])
    losses = [line["loss"] for line in read(tmp_path / "metrics.jsonl") if "loss" in line]
    np.testing.assert_allclose(replicas.metrics["loss"][r], losses, rtol=2e-4)
    np.testing.assert_allclose(replicas.final("validation_loss")[r], summary["val_loss"], rtol=2e-4)
    np.testing.assert_allclose(replicas.final("validation_root")[r], summary["val_root"], rtol=2e-4)


def test_shapes_and_cadence(replicas):
    assert replicas.params["hidden"]["kernel"].shape == (3, 4, 16)
    assert replicas.metrics["loss"].shape == (3, 6)
    assert sorted(replicas.evaluations) == [4, 6]
    np.testing.assert_array_equal(replicas.state["seen"], [48] * 3)


def test_own_data_gives_every_replica_its_own_batches():
    found = train_replicas(TinyTask(), tiny_config(), [3, 3], data="own", steps=4, evaluate=())
    shared = train_replicas(TinyTask(), tiny_config(), [3, 3], steps=4, evaluate=())
    np.testing.assert_array_equal(shared.metrics["loss"][0], shared.metrics["loss"][1])
    assert not np.array_equal(found.metrics["loss"][0], found.metrics["loss"][1])
    np.testing.assert_allclose(found.metrics["loss"][0, 0], shared.metrics["loss"][0, 0], rtol=1e-6)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ConfigError, match="1 learning rates for 2 seeds"):
        train_replicas(TinyTask(), tiny_config(), [0, 1], lrs=[0.1])
    with pytest.raises(ConfigError, match="data='mine'"):
        train_replicas(TinyTask(), tiny_config(), [0], data="mine")

"""The language model on 8 devices: every mesh gives the first losses of one device, from one compilation."""

import numpy as np
import pytest

from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from tests.training.test_mesh import first_losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    for i in range(12):
        (path / f"{i}.txt").write_text(f"document {i} " + "abc " * (20 + 3 * i))
    return path


def losses_on(folder, mesh, variant="hybrid"):
    config = load_experiment(f"experiments/gla.py:{variant}")
    config.model.update(width=32, depth=2, heads=2, unroll=1)
    if variant == "hybrid":
        config.model.hybrid = "gla,attention"
    config.mixers.gla.kv_heads = 1
    config.data.update(path=str(folder), sequence_length=24, batch_size=8, validation_share=0.3)
    config.mesh.update(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
    config = resolve(config)
    return first_losses(config, find("tasks", config.task.name).make(config))


@pytest.fixture(scope="module")
def one_device(folder):
    return {variant: losses_on(folder, (1, 1, 1), variant)[0] for variant in ("hybrid", "tbptt")}


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 4, 1), (2, 2, 2)], ids=str)
def test_first_losses_equal_those_of_one_device(folder, one_device, mesh):
    losses, state, compilations = losses_on(folder, mesh)
    np.testing.assert_allclose(losses, one_device["hybrid"], rtol=1e-5)
    assert compilations == 1
    q = state.params["params"]["blocks"]["gla"]["mixer"]["q"]["kernel"]
    assert q.addressable_shards[0].data.size * mesh[1] * mesh[2] == q.size


def test_a_carried_state_is_split_like_the_rows(folder, one_device):
    losses, state, compilations = losses_on(folder, (4, 2, 1), "tbptt")
    np.testing.assert_allclose(losses, one_device["tbptt"], rtol=1e-5)
    assert compilations == 1
    S = state.state["carry"]["gla"]["S"]
    assert S.addressable_shards[0].data.shape[1] == 1

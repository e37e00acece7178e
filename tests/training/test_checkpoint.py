"""Checkpoints: digests, damage of every kind, retention, other meshes, parts, full disks."""

import json
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paperlab.errors import ConfigError
from paperlab.training import checkpoint
from paperlab.training.checkpoint import CheckpointError, Checkpoints, all_steps, restore, restore_params
from paperlab.training.digest import digest, digests
from paperlab.training.mesh import make_mesh
from paperlab.training.retention import kept
from tests.training.tiny_task import tiny_config


def policy(**changes):
    return tiny_config(**{f"checkpoint__{name}": value for name, value in changes.items()}).checkpoint


@cache
def mesh_of(data, fsdp, tensor):
    return make_mesh(tiny_config(mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor).mesh)


def state(step, mesh=(1, 1, 1), spec=P(), ema=False):
    """A tree of several dtypes; its numbers tell the step."""
    place = NamedSharding(mesh_of(*mesh), spec)
    weights = {"w": jnp.arange(64.0).reshape(8, 8) + step, "half": jnp.full((8,), step, jnp.bfloat16)}
    whole = {
        "step": jnp.int32(step),
        "params": jax.device_put(weights, place),
        "flags": jnp.asarray([True, False]),
        "key": jax.random.key(step),
        "empty": jnp.zeros((0, 3)),
        "pair": (jnp.int8(step), {"0": jnp.float32(step) / 3}),
    }
    return {**whole, "ema": jax.device_put(jax.tree.map(lambda x: x / 2, weights), place)} if ema else whole


def shapes(tree, mesh=(1, 1, 1), spec=P()):
    """Where to restore to: matrices by `spec`, the rest copied."""

    def one(x):
        where = NamedSharding(mesh_of(*mesh), spec if x.ndim >= len(spec) and x.size and x.size % 8 == 0 else P())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(one, tree)


def written(directory, steps=(1, 2), **options):
    found = Checkpoints(directory, policy(**options), say=lambda text: said.append(text))
    said: list[str] = []
    found.said = said
    for step in steps:
        found.save(step, state(step), {"data_index": step, "metrics": {}, "config": {}})
    found.wait()
    return found


def assert_same(got, want):
    def raw(leaf):
        return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    jax.tree.map(lambda g, w: np.testing.assert_array_equal(np.asarray(raw(g)), np.asarray(raw(w))), got, want)


# digests


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint16", "int32", "bool", "complex64"])
def test_one_flipped_bit_changes_the_digest_wherever_it_is(dtype):
    rng = np.random.default_rng(0)
    size = np.dtype(jnp.dtype(dtype)).itemsize
    raw = rng.integers(0, 2 if dtype == "bool" else 100, (5, 3, size)).astype(np.uint8)
    whole = digests([jnp.asarray(raw.view(jnp.dtype(dtype))[..., 0])])[0]
    flipped = []
    for at in [(0, 0, 0), (4, 2, size - 1), (2, 1, 0)]:
        other = raw.copy()
        other[at] ^= 1
        flipped.append(jnp.asarray(other.view(jnp.dtype(dtype))[..., 0]))
    assert all(d != whole for d in np.asarray(digests(flipped)))


def test_digest_sees_order_and_is_the_same_on_every_mesh():
    x = jnp.arange(64.0).reshape(8, 8)
    want = int(jax.jit(digest)(x))
    assert want != int(jax.jit(digest)(x.T))
    for mesh, spec in [
        ((8, 1, 1), P("data")),
        ((2, 2, 2), P("fsdp", "tensor")),
        ((1, 4, 2), P(None, ("fsdp", "tensor"))),
    ]:
        assert int(jax.jit(digest)(jax.device_put(x, NamedSharding(mesh_of(*mesh), spec)))) == want


# what is saved comes back


def test_everything_comes_back_with_its_metadata(tmp_path):
    found = written(tmp_path).restore_latest(shapes(state(2)))
    assert_same(found.tree, state(2))
    assert found.metadata["step"] == found.metadata["data_index"] == 2
    assert found.metadata["leaves"]["params/half"] == [[8], "bfloat16"]


@pytest.mark.parametrize(
    ("mesh", "spec"), [((8, 1, 1), P("data")), ((2, 2, 2), P("fsdp", "tensor"))], ids=["rows", "both"]
)
def test_restores_onto_another_mesh(tmp_path, mesh, spec):
    written(tmp_path)
    target = shapes(state(2), mesh, spec)
    found = restore(tmp_path / "checkpoints" / "2", target)
    assert_same(found.tree, state(2))
    assert found.tree["params"]["w"].sharding == target["params"]["w"].sharding


def test_parameters_alone_and_the_average_where_there_is_one(tmp_path):
    written(tmp_path / "plain")
    params, step = restore_params(tmp_path / "plain")
    assert step == 2
    assert_same(params, state(2)["params"])
    assert_same(restore_params(tmp_path / "plain", step=1)[0], state(1)["params"])
    averaged = Checkpoints(tmp_path / "averaged", policy())
    averaged.save(3, state(3, ema=True), {})
    averaged.close()
    target = shapes(state(3)["params"], (2, 2, 2), P("fsdp"))
    params, _ = restore_params(tmp_path / "averaged", target=target)
    assert_same(params, state(3, ema=True)["ema"])
    assert params["w"].sharding == target["w"].sharding


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="it has none"):
        restore_params(tmp_path)
    written(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint of step 7: it has 1, 2"):
        restore_params(tmp_path, step=7)


def test_another_model_is_refused_and_nothing_is_set_aside(tmp_path):
    found = written(tmp_path)
    other = state(2)
    other["params"]["w"] = jnp.zeros((4, 8))
    del other["params"]["half"]
    with pytest.raises(
        ConfigError, match=r"params/half: bfloat16\[8\] there, nothing here; params/w: float32\[8, 8\] there"
    ):
        found.restore_latest(shapes(other))
    assert all_steps(found.directory) == [1, 2]


# damage


def test_a_flipped_byte_in_any_file_is_caught_or_harmless(tmp_path):
    found = written(tmp_path)
    files = [path for path in (found.directory / "2").rglob("*") if path.is_file() and path.stat().st_size]
    caught = set()
    for file in files:
        sound = file.read_bytes()
        for at in {0, len(sound) // 2, len(sound) - 1}:
            file.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
            try:
                assert_same(restore(found.directory / "2", shapes(state(2))).tree, state(2))
            except CheckpointError as error:
                caught.add((file.parent.name, "checkpoints/2 is damaged" in str(error), len(str(error).splitlines())))
        file.write_bytes(sound)
    assert {("d", True, 1), ("metadata", True, 1)} <= caught
    assert all(named and lines == 1 for _, named, lines in caught)


def test_a_wrong_number_in_a_well_formed_checkpoint_is_caught(tmp_path):
    """What a flipped bit under the file's own checks would look like: stored digests of other values."""
    found = written(tmp_path, steps=(1,))
    real = checkpoint.digests
    checkpoint.digests = lambda leaves: real(leaves) ^ 1
    try:
        found.save(2, state(2), {})
        found.wait()
    finally:
        checkpoint.digests = real
    assert_same(found.restore_latest(shapes(state(1))).tree, state(1))
    assert len(found.said) == 1
    assert "wrong digest" in found.said[0]
    assert found.said[0].endswith("; set aside as 2.damaged, the one of step 1 is used")


@pytest.mark.parametrize("how", ["truncated", "missing", "half-written", "empty"])
def test_damage_is_reported_in_one_line_and_the_one_before_is_used(tmp_path, how):
    found = written(tmp_path)
    newest = found.directory / "2"
    data = max((p for p in newest.rglob("*") if p.is_file() and p.parent.name == "d"), key=lambda p: p.stat().st_size)
    if how == "truncated":
        data.write_bytes(data.read_bytes()[:-20])
    elif how == "missing":
        shutil.rmtree(newest / "state")
    elif how == "half-written":
        newest.rename(found.directory / "2.orbax-checkpoint-tmp-17")
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    assert_same(found.restore_latest(shapes(state(1))).tree, state(1))
    assert all_steps(found.directory) == [1]
    assert not list(found.directory.glob("*tmp*"))
    if how != "half-written":
        assert len(found.said) == 1
        assert "\n" not in found.said[0]
        assert "is damaged" in found.said[0]
        assert restore_params(tmp_path)[1] == 1
    found.save(2, state(2), {})
    found.wait()
    assert_same(found.restore_latest(shapes(state(2))).tree, state(2))


def test_nothing_written_is_nothing(tmp_path):
    assert Checkpoints(tmp_path, policy()).restore_latest(shapes(state(1))) is None


def test_a_save_that_fails_is_one_clear_error_and_keeps_the_others(tmp_path):
    found = written(tmp_path, steps=(1,))
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "nothing", ignore_errors=True)
    real, found._saver.wait_until_finished = found._saver.wait_until_finished, _raise_no_space
    found._last = 2
    with pytest.raises(CheckpointError, match="checkpoints/2 could not be written: the disk is full; free some space"):
        found.wait()
    found._saver.wait_until_finished = real
    assert_same(found.restore_latest(shapes(state(1))).tree, state(1))


def _raise_no_space():
    raise OSError(28, "No space left on device")


# retention


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"keep": 2}, {40, 50}),
        ({"keep": 1, "keep_every": 20}, {20, 40, 50}),
        ({"keep": 1, "best_metric": "val_loss"}, {20, 50}),
        ({"keep": 1, "best_metric": "val_loss", "best_mode": "max"}, {10, 50}),
        ({"keep": 1, "best_metric": "absent"}, {50}),
        ({"keep": 9}, {10, 20, 30, 40, 50}),
    ],
)
def test_policy(options, want):
    losses = {10: 3.0, 20: 1.0, 30: float("nan"), 40: 1.0}
    metrics = {step: {"val_loss": losses[step]} if step in losses else {} for step in (10, 20, 30, 40, 50)}
    assert kept(metrics, policy(**{"best_metric": "", **options})) == want


def test_what_the_policy_drops_is_gone_and_the_best_stays(tmp_path):
    found = Checkpoints(tmp_path, policy(keep=1, best_metric="val_loss"))
    for step, loss in [(1, 2.0), (2, 1.0), (3, 3.0), (4, 2.5)]:
        found.save(step, state(step), {"metrics": {"val_loss": loss}})
    found.close()
    assert all_steps(found.directory) == [2, 4]
    stored = json.loads((found.directory / "2" / "metadata" / "metadata").read_text())
    assert stored["metadata"]["metrics"] == {"val_loss": 1.0}

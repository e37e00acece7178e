"""Damaged, missing and unwritable files of a work directory: one line each, and nothing lost that had been saved.

The same on real runs that are killed besides: `python -m tests.faults`.
"""

import collections
import errno
import json
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paperlab
from paperlab import disk
from paperlab import workdir as workdirs
from paperlab.config import mathematics
from paperlab.errors import ConfigError
from paperlab.flags import expand
from paperlab.run import main
from paperlab.training import checkpoint, storage
from paperlab.training.checkpoint import CheckpointError, Checkpoints, all_steps
from paperlab.training.writers import JsonLines, read
from tests.distributed.processes import free_port
from tests.faults.damage import WAYS, files_of, hurt
from tests.training.tiny_task import tiny_config

ROOT = Path(__file__).parents[2]


def state(step):
    """Leaves below and above the size from which orbax gives them files of their own."""
    rng = np.random.default_rng(step)
    return {"step": jnp.int32(step), "w": jnp.asarray(rng.normal(size=(48, 48)), jnp.float32), "b": jnp.full(8, step)}


def shapes():
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state(1))


def saving(folder, **options):
    policy = tiny_config(**{f"checkpoint__{name}": value for name, value in options.items()}).checkpoint
    said: list[str] = []
    found = Checkpoints(folder, policy, say=said.append)
    found.said = said
    return found


def saved(folder, steps=(1, 2), **options):
    found = saving(folder, **options)
    for step in steps:
        found.save(step, state(step), {"data_index": step, "metrics": {}, "config": {}})
    found.close()
    return found


def assert_is_state(restored, step):
    assert restored.metadata["step"] == step
    for name, leaf in state(step).items():
        np.testing.assert_array_equal(np.asarray(restored.tree[name]), np.asarray(leaf))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A work directory with sound checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    saved(folder)
    return folder


# every file of a checkpoint


@pytest.mark.parametrize("way", WAYS)
def test_any_file_of_a_checkpoint(two, tmp_path, way):
    rng = random.Random(way)
    caught = set()
    names = [file.relative_to(two) for file in files_of(two / "checkpoints" / "2")]
    for number, name in enumerate(names):
        work = tmp_path / str(number)
        shutil.copytree(two, work)
        hurt(work / name, way, rng)
        found = saving(work)
        restored = found.restore_latest(shapes())
        if found.said:
            assert_is_state(restored, 1)
            assert len(found.said) == 1
            assert f"{work}/checkpoints/2 is damaged (" in found.said[0]
            assert found.said[0].endswith("; set aside as 2.damaged, the one of step 1 is used")
            assert len(found.said[0].splitlines()) == 1
            assert sorted(path.name for path in found.directory.iterdir()) == ["1", "2.damaged"]
            caught.add("d" if name.parts[3] == "d" else name.name)
        else:  # a file that nothing is read from
            assert_is_state(restored, 2)
    assert {"metadata", "manifest.ocdbt"} <= caught
    if way != "missing":
        assert way == "flipped" or {"_METADATA", "process_0"} <= caught


def test_several_damaged_ones_are_each_said(two, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(two, folder)
    shutil.copytree(two / "checkpoints" / "2", folder / "checkpoints" / "3")
    shutil.copytree(two / "checkpoints" / "2", folder / "checkpoints" / "2.damaged")
    (folder / "checkpoints" / "2" / "metadata" / "metadata").write_text("[]")
    shutil.rmtree(folder / "checkpoints" / "3" / "state")
    found = saving(folder)
    assert_is_state(found.restore_latest(shapes()), 1)
    assert [line.split(" is damaged")[0][-1] for line in found.said] == ["3", "2"]
    assert sorted(p.name for p in found.directory.iterdir()) == ["1", "2.damaged", "2.damaged1", "3.damaged"]


def test_nothing_is_trained_over_when_no_good_checkpoint_is_left(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    for step in ("1", "2"):
        (tmp_path / "run" / "checkpoints" / step / "metadata" / "metadata").write_text("{}")
    before = files_of(tmp_path)
    for _ in range(2):
        found = saving(tmp_path / "run")
        with pytest.raises(
            ConfigError, match=r"has no good checkpoint left \(damaged: 1, 2\); nothing was changed: put a"
        ):
            found.restore_latest(shapes())
        assert len(found.said) == 2
        assert files_of(tmp_path) == before
    for step in ("1", "2"):
        (found.directory / step).rename(found.directory / f"{step}.damaged")
    with pytest.raises(ConfigError, match=r"damaged: 1.damaged, 2.damaged"):
        found.restore_latest(shapes())
    shutil.rmtree(found.directory)
    assert found.restore_latest(shapes()) is None


def test_what_only_this_machine_cannot_read_is_not_damage(two, tmp_path, monkeypatch):
    def refuse(folder, wanted):
        raise PermissionError(13, "Permission denied", str(folder))

    shutil.copytree(two, tmp_path / "run")
    monkeypatch.setattr("paperlab.training.restore.read_arrays", refuse)
    with pytest.raises(ConfigError, match=r"checkpoints/2 cannot be read here: PermissionError"):
        saving(tmp_path / "run").restore_latest(shapes())
    assert all_steps(tmp_path / "run" / "checkpoints") == [1, 2]


def test_an_older_checkpoint_goes_only_when_the_newer_one_is_on_the_disk(tmp_path, monkeypatch):
    there = []

    def flush(folder):
        there.append((folder.name, all_steps(folder.parent)))
        disk.flush_to_disk(folder)

    monkeypatch.setattr(checkpoint, "flush_to_disk", flush)
    saved(tmp_path, steps=(1, 2, 3), keep=1, best_metric="")
    assert there == [("1", [1]), ("2", [1, 2]), ("3", [2, 3])]
    assert all_steps(tmp_path / "checkpoints") == [3]


def test_only_what_orbax_gave_up_goes_unsaid(monkeypatch):
    heard, logger = [], logging.getLogger("asyncio")
    before = list(logger.filters)
    logger.filters.clear()
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    storage._silence()
    storage._silence()

    def unraisable(error):
        return SimpleNamespace(exc_type=type(error), exc_value=error, exc_traceback=None, err_msg=None, object=None)

    def record(error):
        return logging.LogRecord("asyncio", logging.ERROR, "", 0, "never retrieved", None, (type(error), error, None))

    try:
        sys.unraisablehook(unraisable(RuntimeError("Event loop is closed")))
        assert heard == []
        sys.unraisablehook(unraisable(RuntimeError("another")))
        assert [str(one.exc_value) for one in heard] == ["another"]
        assert not logger.filter(record(ValueError('Error writing "w/.zarray" in OCDBT database')))
        assert logger.filter(record(ValueError("another")))
        assert len(logger.filters) == 1
    finally:
        logger.filters[:] = before


def test_what_one_process_cannot_read_none_uses(tmp_path):
    """Each of two real processes reads its own rows; a file with those of the second is gone."""
    port = str(free_port())
    command = [sys.executable, "-m", "tests.training.damage_in_processes", port]
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    both = [
        subprocess.Popen(
            [*command, str(i), str(tmp_path)], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
        )
        for i in (0, 1)
    ]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("restored step 1, equal, left [1]" in one for one in said)
    assert "checkpoints/2 is damaged (in the part that another process reads); set aside as 2.damaged" in said[0]
    assert "checkpoints/2 is damaged (state: w cannot be read" in said[1]


# disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, and a function that gives it more room."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*words):
        subprocess.run(["mount", *words, str(place)], check=True, capture_output=True)

    try:
        mount("-t", "tmpfs", "-o", "size=256k", "tmpfs")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here (it takes root)")
    yield place, lambda: mount("-o", "remount,size=16m")
    subprocess.run(["umount", str(place)], check=True)


def fill(folder):
    with (folder / "ballast").open("wb", buffering=0) as out:
        while True:
            try:
                out.write(b"x" * 4096)
            except OSError:
                return


def test_a_full_disk_costs_only_the_checkpoint_that_does_not_fit(small_disk):
    place, give_room = small_disk
    found = saved(place, steps=(1,), asynchronous=True)
    fill(place)
    with pytest.raises(CheckpointError) as failure:
        saved(place, steps=(2,))
    assert str(failure.value) == (
        f"checkpoint {place}/checkpoints/2 could not be written: the disk is full; free some space and run the same "
        "command again"
    )
    assert [path.name for path in found.directory.iterdir()] == ["1"]
    assert_is_state(saving(place).restore_latest(shapes()), 1)
    give_room()
    saved(place, steps=(2,))
    assert_is_state(saving(place).restore_latest(shapes()), 2)


def test_what_threads_of_a_failed_save_still_write_is_removed(tmp_path, monkeypatch):
    """Orbax reports the first failure while its other threads go on; they may make the folder anew."""
    found = saved(tmp_path, steps=(1,))
    half = found.directory / "2.orbax-checkpoint-tmp"

    def write_on():
        for number in range(8):
            half.mkdir(exist_ok=True)
            with suppress(OSError):
                (half / str(number)).touch()
            time.sleep(0.03)

    def fails(*arguments, **options):
        writers.append(threading.Thread(target=write_on))
        writers[0].start()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writers = []
    found = saving(tmp_path)
    saver = storage.import_orbax().AsyncCheckpointer
    monkeypatch.setattr(saver, "save", fails)
    with pytest.raises(CheckpointError, match="the disk is full"):
        found.save(2, state(2), {"data_index": 2, "metrics": {}, "config": {}})
    writers[0].join()
    assert all_steps(found.directory) == [1]
    assert [path.name for path in found.directory.iterdir()] == ["1"]


def test_a_full_disk_leaves_what_stands_in_metrics_and_summary(small_disk):
    place, give_room = small_disk
    disk.write_atomically(place / "summary.json", "old")
    with JsonLines(place / "metrics.jsonl") as writer:
        writer.write(1, {"loss": 2.0})
        fill(place)
        with pytest.raises(disk.WriteError, match=r"metrics.jsonl could not be written: the disk is full; free"):
            collections.deque((writer.write(2, {"loss": 1.0, "long": 1 / 3}) for _ in range(200)), maxlen=0)
    assert [line["step"] for line in read(place / "metrics.jsonl")][:2] == [1, 2]
    with pytest.raises(disk.WriteError, match=r"metrics.jsonl could not be written: the disk is full"):
        JsonLines(place / "metrics.jsonl", keep_until=1)
    with pytest.raises(disk.WriteError, match=r"summary.json could not be written: the disk is full"):
        disk.write_atomically(place / "summary.json", "new " * 9000)
    assert (place / "summary.json").read_text() == "old"
    assert sorted(path.name for path in place.iterdir()) == ["ballast", "metrics.jsonl", "summary.json"]
    give_room()
    JsonLines(place / "metrics.jsonl", keep_until=1).close()
    assert read(place / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


@contextmanager
def largest_file(size):
    """What `ulimit -f` does, without mounting anything."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_files_is_named(tmp_path):
    saved(tmp_path, steps=(1,))
    with largest_file(2048), pytest.raises(CheckpointError) as failure:
        saved(tmp_path, steps=(2,))
    assert "checkpoints/2 could not be written: it would be larger than the system allows (`ulimit -f`)" in str(
        failure.value
    )
    assert len(str(failure.value).splitlines()) == 1
    disk.write_atomically(tmp_path / "note", "old")
    with largest_file(2048), pytest.raises(disk.WriteError, match=r"note could not be written: it would be larger"):
        disk.write_atomically(tmp_path / "note", "new " * 1000)
    assert (tmp_path / "note").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "note"]
    assert_is_state(saving(tmp_path).restore_latest(shapes()), 1)


TINY = [
    "--config=experiments/gla.py",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.unroll=1",
    "--config.mixers.gla.short_conv=false",
    "--config.data.sequence_length=16",
    "--config.data.batch_size=8",
    "--config.data.validation_share=0.3",
    "--config.mesh.data=1",
    "--config.evaluators.val.batches=1",
]


def test_a_read_only_run_can_be_used_and_is_refused_for_training(small_disk, tmp_path, capsys):
    place, give_room = small_disk
    give_room()
    text = tmp_path / "text"
    text.mkdir()
    for i in range(8):
        (text / f"{i}.txt").write_text(f"document {i} " + "abc " * (40 + 3 * i))
    flags = [*TINY, f"--config.data.path={text}", f"--workdir={place / 'run'}", "--config.train.steps=1"]
    assert main(flags) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    before = files_of(place)
    assert main([*flags, "--eval_only"]) == 0
    assert paperlab.load(place / "run").step == 1
    capsys.readouterr()
    assert main([*flags[:-1], "--config.train.steps=2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--workdir: cannot write to {place / 'run'}" in error
    assert main([*flags[:-2], f"--workdir={place / 'new'}"]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert files_of(place) == before


# the other files of a work directory


@pytest.fixture(scope="module")
def config():
    return expand("experiments/gla.py", {"seed": ["7"]})[0][0]


@pytest.fixture
def recorded(tmp_path, config):
    """A work directory whose config.json has a copy in a checkpoint."""
    workdirs.prepare(tmp_path, config, {"seed": "7"})
    found = saving(tmp_path)
    found.save(3, {"step": jnp.int32(3)}, {"config": json.loads(config.to_json_best_effort())})
    found.close()
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_config_is_replaced_by_the_copy_in_the_checkpoint(recorded, config, capsys, way):
    sound, rng = (recorded / "config.json").read_bytes(), random.Random(way)
    for _ in range(30 if way == "flipped" else 1):
        (recorded / "config.json").write_bytes(sound)
        hurt(recorded / "config.json", way, rng)
        hurting = (recorded / "config.json").read_bytes() if way != "missing" else b""
        assert mathematics(workdirs.read_config(recorded)) == mathematics(config), hurting
        said = capsys.readouterr().err
        assert said.count("\n") <= 1
        if way != "flipped":
            assert f"Note: {recorded}/config.json is " in said
            assert "the copy in checkpoint 3 is used" in said
    (recorded / "config.json").unlink(missing_ok=True)
    assert workdirs.prepare(recorded, config, {})
    assert mathematics(workdirs.read_config(recorded)) == mathematics(config)


def test_a_lost_config_does_not_let_another_run_in(recorded):
    (recorded / "config.json").unlink()
    other = expand("experiments/gla.py", {"seed": ["8"]})[0][0]
    with pytest.raises(ConfigError, match=r"holds a run of another configuration \(config.seed: 7 -> 8\)"):
        workdirs.prepare(recorded, other, {})


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00\xff", "[[" * 5000])
def test_a_damaged_config_without_a_copy_is_refused_in_one_line(tmp_path, config, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        ConfigError, match=r"config.json is damaged \(.*no checkpoint has a copy; remove it, or"
    ) as failure:
        workdirs.prepare(tmp_path, config, {})
    assert len(str(failure.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{}", "[", "null", "\x00\xff"])
def test_a_damaged_history_is_begun_anew(tmp_path, config, capsys, text):
    (tmp_path / "overrides.json").write_text(text, encoding="latin-1")
    workdirs.prepare(tmp_path, config, {"seed": "7"})
    assert len(json.loads((tmp_path / "overrides.json").read_text())) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "overrides.json.damaged").read_text(encoding="latin-1") == text


def test_damaged_metrics_are_said_once_and_what_is_whole_stays(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2, 3, 4)]
    file.write_text("\n".join([whole[0], whole[1][:9], "[1]", '{"step": true}', "[" * 9999, *whole[2:], whole[3][:12]]))
    with JsonLines(file, keep_until=3) as writer:
        writer.write(4, {"loss": 0.25})
    assert [line["step"] for line in read(file)] == [1, 3, 4]
    assert capsys.readouterr().out == f"{file}: 4 damaged lines were dropped\n"
    with file.open("ab") as out:
        out.write(b'{"step": 5, "lo')
    JsonLines(file, keep_until=4).close()
    assert file.read_text() == "\n".join([whole[0], *whole[2:], ""])
    file.unlink()
    JsonLines(file, keep_until=4).close()
    assert capsys.readouterr().out == f"{file} is missing: the curves begin at step 4\n"

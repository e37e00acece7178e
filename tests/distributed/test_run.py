"""The main job on 1, 2 and 4 processes, one after another in one work directory: resumed, told to stop, killed."""

import json
import re
import signal
import subprocess

import jax
import numpy as np
import pytest

import paperlab
from paperlab.run import main
from tests.distributed import slurm
from tests.distributed.processes import PATIENCE, ROOT, TINY, Processes, free_port, text_folder


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return [*TINY, f"--config.data.path={text_folder(folder / 'text')}", "--config.evaluators.val.every=0"]


def weights(workdir, step=None):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(paperlab.load(workdir).params)]


def newest(workdir):
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_then_one_then_four_are_one_run(flags, tmp_path, capsys):
    run = tmp_path / "run"
    two_of_slurm_equal_one_process_on_the_same_mesh(flags, run, tmp_path)
    capsys.readouterr()
    assert main([*flags, f"--workdir={run}", "--config.mesh.data=1", "--config.train.steps=8"]) == 0
    assert "resumed from step 6" in capsys.readouterr().out
    a_signal_to_one_of_four_stops_and_saves_all(flags, run, tmp_path)


def two_of_slurm_equal_one_process_on_the_same_mesh(flags, run, tmp_path):
    flags = [*flags, "--config.train.steps=6", "--config.train.checkpoint_every=3", "--config.train.log_every=2"]
    job = slurm.job(tmp_path / "slurm", tasks=2, port=free_port())
    command = ["bash", str(ROOT / "launch" / "slurm.sbatch"), *flags, f"--workdir={run}"]
    ended = subprocess.run(command, env=job, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    out = ended.stdout
    assert out.count("step 6/6") == 1
    assert out.count("params/embedding") == 1
    assert out.count("2 processes") == 1
    assert re.search(r"memory a device: parameters 34.6 kB, optimiser .*, temporaries .*; at most .* of ", out)
    assert "Gloo" not in out
    assert "[process 1]" not in out
    assert [line["step"] for line in lines_of(run) if "loss" in line] == [2, 4, 6]
    assert len(json.loads((run / "overrides.json").read_text())) == 1
    assert json.loads((run / "summary.json").read_text())["devices"]["processes"] == 2
    assert main([*flags, f"--workdir={tmp_path / 'alone'}", "--config.mesh.data=2"]) == 0
    for one, other in zip(weights(run), weights(tmp_path / "alone"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    for one, other in zip(lines_of(run), lines_of(tmp_path / "alone"), strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-5)


def a_signal_to_one_of_four_stops_and_saves_all(flags, run, tmp_path):
    more = [*flags, f"--workdir={run}", "--config.train.steps=100000", "--config.mesh.fsdp=2"]
    with Processes(4, [*more, "--config.train.checkpoint_every=10"], tmp_path / "out") as four:
        four.until(run / "checkpoints" / "10")
        four.kill(2, signal.SIGTERM)
        assert four.statuses() == [75] * 4, four.errors()
        out, err = four.output(), four.errors()
    assert "mesh: data=2, fsdp=2, tensor=1" in out[0]
    assert "resumed from step 8" in out[0]
    step = newest(run)
    assert re.search(rf"another process: (saving step {step}|nothing new to save, .* step {step})\n", out[0])
    assert step >= 10
    assert (out[1:], err) == ([""] * 3, [""] * 4)
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"


def test_one_that_is_killed_ends_the_other_in_one_line_and_the_same_command_goes_on(flags, tmp_path):
    run, before = tmp_path / "run", 0
    more = [*flags, f"--workdir={run}", "--config.train.steps=100000", "--config.train.checkpoint_every=20"]
    for victim, survivor in ((1, 0), (0, 1)):
        with Processes(2, more, tmp_path / str(victim)) as two:
            two.until(run / "checkpoints" / str((before // 20 + 1) * 20))
            two.kill(victim, signal.SIGKILL)
            statuses = two.statuses()
            err = two.errors()
        assert statuses[victim] == -signal.SIGKILL
        assert statuses[survivor] in (1, -signal.SIGABRT)
        assert f"error: process {victim} was lost" in err[survivor]
        assert re.search(r"the same command goes on from step \d+\n", err[survivor]), err
        assert err[survivor].count("\n") == 1
        assert err[victim] == ""
        assert newest(run) > before
        before = newest(run)


def test_what_fails_on_one_process_alone_ends_all_with_its_line(tmp_path):
    """The data lie under a relative name, and the second process stands in another folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    text_folder(here / "text")
    flags = [*TINY, "--config.data.path=text", f"--config.data.cache_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    with Processes(2, flags, tmp_path / "out", cwd={0: here, 1: there}) as two:
        assert two.statuses() == [2, 2]
        err = two.errors()
    assert err[0].startswith("error: process 1: ")
    assert "text" in err[0]
    assert err[0].count("\n") == 1
    assert err[1] == ""

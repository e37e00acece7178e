"""The front door, used as people use it: run, run again, kill, ask wrongly, sweep."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import paperlab
from paperlab.run import main

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


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"document {i} " + "abc " * (40 + 3 * i))
    return [*TINY, f"--config.data.path={folder}"]


def weights(workdir):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(paperlab.load(workdir).params)]


def test_killed_at_any_moment_it_goes_on_from_the_last_checkpoint(arguments, tmp_path):
    flags = [*arguments, "--config.train.steps=400", "--config.train.checkpoint_every=40"]
    assert main([*flags, f"--workdir={tmp_path / 'whole'}"]) == 0
    command = [sys.executable, "-m", "paperlab.run", *flags, f"--workdir={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoints" / "80").is_dir() and time.monotonic() < until:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert main([*flags, f"--workdir={tmp_path / 'killed'}"]) == 0
    for one, other in zip(weights(tmp_path / "whole"), weights(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps))


def test_run_resume_evaluate_and_start_from(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*arguments, f"--workdir={run}", "--config.train.steps=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Devices: ")
    assert "params/embedding" in out
    assert "gzip -9" in out
    summary = json.loads((run / "summary.json").read_text())
    assert {"val_bits_per_byte", "corpus", "baselines"} <= set(summary)
    assert len(summary["corpus"]["sha256"]) == 64
    for name in ("config.json", "overrides.json", "parameters.txt", "metrics.jsonl", "curves.png", "samples.txt"):
        assert (run / name).stat().st_size
    assert main([*arguments, f"--workdir={run}", "--config.train.steps=4"]) == 0
    assert "resumed from step 3" in capsys.readouterr().out
    assert main([*arguments, f"--workdir={run}", "--config.train.steps=4", "--eval_only"]) == 0
    assert f"{json.loads((run / 'summary.json').read_text())['val_loss']:.6g}" in capsys.readouterr().out
    more = [f"--workdir={tmp_path / 'more'}", "--config.train.steps=1", f"--config.init_from={run}"]
    assert main([*arguments, *more]) == 0
    assert f"weights from {run}, step 4" in capsys.readouterr().out


def test_a_sweep_ends_with_one_table(arguments, tmp_path, capsys):
    flags = [*arguments, f"--workdir={tmp_path}", "--config.train.steps=2", "--config.optim.lr=1e-3,3e-3"]
    assert main(flags) == 0
    assert len(list(tmp_path.glob("gla-*/summary.json"))) == 2
    out = capsys.readouterr().out
    table = out[out.rindex("optim.lr") :]
    assert "1e-3" in table
    assert "3e-3" in table
    assert table.count("complete") == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--config=experiments/glaa.py"], "did you mean 'experiments/gla.py'"),
        (["--config=experiments/gla.py:no_gat"], "did you mean 'no_gate'"),
        ([*TINY, "--config.optim.lrr=1"], "did you mean config.optim.lr"),
        ([*TINY, "--config.model.heads=3"], "multiples of heads=3"),
        ([*TINY, "--config.data.path=/nowhere"], "/nowhere"),
        ([*TINY, "--config.mesh.fsdp=3"], "fsdp"),
        ([*TINY, "--eval_only", "--workdir=/nowhere/run"], "there is no run in"),
        ([*TINY, "--config.optim.lr=1,2", "--show"], "give each field one value"),
        ([*TINY, "--config.seed"], "needs a value"),
    ],
)
def test_what_cannot_be_run_is_one_line(flags, told, tmp_path, capsys):
    if not any(flag.startswith("--workdir") for flag in flags):
        flags = [*flags, f"--workdir={tmp_path / 'run'}"]
    assert main(flags) in (1, 2)
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_another_mathematics_in_the_same_work_directory_is_refused(arguments, tmp_path, capsys):
    flags = [*arguments, f"--workdir={tmp_path}", "--config.train.steps=1"]
    assert main(flags) == 0
    capsys.readouterr()
    assert main([*flags, "--config.optim.lr=0.5"]) == 2
    assert "config.optim.lr: 0.003 -> 0.5" in capsys.readouterr().err

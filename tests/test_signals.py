"""Signals at every stage of a run: before there is anything to save, during an evaluation, a save, twice; and a falling clock."""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import paperlab
from paperlab.run import main
from paperlab.training import signals
from paperlab.training.checkpoint import all_steps
from paperlab.training.loop import train
from paperlab.training.writers import read
from tests.test_run import TINY
from tests.training.test_resume import EMA, assert_same, final_state, without_times
from tests.training.tiny_task import TinyTask, tiny_config

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: (work directory, the last state)."""
    workdir = tmp_path_factory.mktemp("whole")
    train(tiny_config(**EMA), workdir, TinyTask())
    return workdir, final_state(workdir, tiny_config(**EMA))


def lose(number):
    """Sends a signal from inside a callback of the garbage collector, where Python swallows what is raised."""

    def callback(phase, info):
        gc.callbacks.remove(callback)
        send(number)
        time.sleep(0.01)

    gc.callbacks.append(callback)
    gc.collect()


def test_a_signal_that_gets_lost_is_found_again(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with signals.at_once():
        lose(signal.SIGUSR1)
        with signals.StopRequest() as stop:
            assert stop.requested()
            assert stop.name == "SIGUSR1"
    with signals.at_once(), signals.StopRequest() as stop:
        assert not stop.requested()
        send(signal.SIGINT)
        assert stop.requested()
        lose(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.requested()
    assert said == []


class Signalling(TinyTask):
    """Sends a signal when it is asked for a validation batch for the n-th time, or when it is initialised (0)."""

    def __init__(self, at, number=signal.SIGTERM):
        super().__init__()
        self.at, self.number, self.read, self.sent = at, number, 0, False

    def init(self, key, batch):
        if self.at == 0 and not self.sent:
            self.sent = True
            send(self.number)
        return super().init(key, batch)

    def data(self, split, process_index=0, process_count=1):
        dataset = super().data(split, process_index, process_count)
        return dataset if split == "train" else dataset.map(self.passed)

    def passed(self, batch):
        self.read += 1
        if self.read == self.at:
            send(self.number)
            time.sleep(0.2)
        return batch


@pytest.mark.parametrize("number", ALL)
def test_before_the_first_step_there_is_nothing_to_save(tmp_path, whole, capsys, number):
    before = [signal.getsignal(one) for one in ALL]
    summary = train(tiny_config(**EMA), tmp_path, Signalling(0, number))
    assert (summary["status"], summary["steps"]) == ("interrupted", 0)
    assert f"{number.name} before the first step: nothing to save" in capsys.readouterr().out
    assert all_steps(tmp_path / "checkpoints") == []
    assert [signal.getsignal(one) for one in ALL] == before
    train(tiny_config(**EMA), tmp_path, TinyTask())
    assert_same(final_state(tmp_path, tiny_config(**EMA)), whole[1])


def test_at_the_start_of_a_resumption_nothing_is_lost(tmp_path, capsys):
    train(tiny_config(**EMA, train__steps=4), tmp_path, TinyTask())
    lines = without_times(tmp_path)
    summary = train(tiny_config(**EMA, train__steps=6), tmp_path, Signalling(0))
    assert (summary["status"], summary["steps"]) == ("interrupted", 4)
    assert "SIGTERM: nothing new to save, the last checkpoint is of step 4" in capsys.readouterr().out
    assert all_steps(tmp_path / "checkpoints")[-1] == 4
    assert without_times(tmp_path) == lines


@pytest.mark.parametrize(("at", "step"), [(1, 4), (4, 6)], ids=["in the middle of the run", "at its end"])
def test_an_evaluation_is_given_up_and_made_up_for(tmp_path, whole, at, step):
    """The evaluation of step 4 reads two batches, or more ahead; the last one all five."""
    every = {"val": {"split": "validation", "every": 4 if at == 1 else 0, "batches": 0}}
    one = tiny_config(**EMA, evaluators=every)
    summary = train(one, tmp_path, Signalling(at))
    assert (summary["status"], summary["steps"]) == ("interrupted", step)
    assert "val_loss" not in summary
    assert all_steps(tmp_path / "checkpoints")[-1] == step
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl") if "val_loss" in line] == []
    for _ in range(2):
        assert train(one, tmp_path, TinyTask())["status"] == "complete"
        expected = [4, 6] if at == 1 else [6]
        assert [line["step"] for line in read(tmp_path / "metrics.jsonl") if "val_loss" in line] == expected
    assert_same(final_state(tmp_path, tiny_config(**EMA)), whole[1])


def test_what_was_owed_is_written_once_though_killed_before_it_was_saved(tmp_path):
    one = tiny_config(**EMA, train__checkpoint_every=0)
    assert train(one, tmp_path, Signalling(1))["steps"] == 4
    for _ in range(2):

        def killed(step, _):
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            train(one, tmp_path, TinyTask(), on_step=killed)
        assert [line["step"] for line in read(tmp_path / "metrics.jsonl") if "val_loss" in line] == [4]


def test_a_metric_belongs_to_the_step_that_was_evaluated(tmp_path):
    """Evaluated at 4 and saved at 6: the checkpoint of 6 does not pass for the best with the metrics of 4."""
    from paperlab.training.restore import read_metadata

    train(tiny_config(train__checkpoint_every=3, train__steps=8), tmp_path, TinyTask())
    assert read_metadata(tmp_path / "checkpoints" / "6")["metrics"] == {}
    assert "val_loss" in read_metadata(tmp_path / "checkpoints" / "8")["metrics"]


def test_requests_are_only_noted_and_a_second_sigint_stops_at_once():
    with signals.StopRequest() as stop:
        assert not stop.requested()
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert stop.requested()
        assert stop.name == "SIGUSR1"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    with pytest.raises(signals.Interrupted, match="SIGTERM"), signals.at_once():
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_in_another_thread_signals_are_left_alone():
    asked = []

    def run():
        with signals.StopRequest() as stop, signals.at_once():
            asked.append(stop.requested())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"document {i} " + "abc " * (40 + 3 * i))
    return [*TINY, f"--config.data.path={folder}", "--config.train.checkpoint_every=4"]


def start(flags, **environment):
    command = [sys.executable, "-m", "paperlab.run", *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def test_a_process_that_is_told_to_stop_while_it_starts(flags, tmp_path):
    """As early as Python lets it: the signal is sent as soon as the front door has set its handlers."""
    process = start([*flags, f"--workdir={tmp_path / 'run'}"])
    status = f"/proc/{process.pid}/status"
    caught, until = 0, time.monotonic() + 60
    while not caught & 1 << signal.SIGTERM - 1 and time.monotonic() < until:
        with open(status) as file:
            caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    assert error == "SIGTERM: stopped, with nothing to save\n"
    assert "step" not in out


def test_a_second_ctrl_c_stops_a_process_at_once(flags, tmp_path):
    process = start([*flags, f"--workdir={tmp_path / 'run'}", "--config.train.steps=1000000"])
    for awaited in ("step 10/", "SIGINT: saving step"):  # the second one comes while the first is acted on
        for line in process.stdout:
            if line.startswith(awaited):
                break
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode in (75, 130), error
    assert "Traceback" not in error
    if process.returncode == 130:
        assert error.strip().splitlines()[-1].startswith("stopped at once")
    saved = paperlab.load(tmp_path / "run").step
    assert saved >= 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(paperlab.load(tmp_path / "run").params))


FALLING = """
import datetime, time

real, calls = time.time, 0

def falling():
    global calls
    calls += 1
    return real() - 3600.0 * calls

class Falling(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(falling(), tz)

time.time, time.time_ns = falling, lambda: int(falling() * 1e9)
datetime.datetime = Falling
"""


def test_a_clock_that_falls_an_hour_at_every_look_changes_nothing(flags, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(FALLING)
    flags = [*flags, "--config.train.log_every=1", "--config.optim.schedule=constant", "--config.optim.warmup=0"]
    steps = [*flags, "--config.train.steps=9"]
    assert main([*steps, f"--workdir={tmp_path / 'whole'}"]) == 0
    assert main([*flags, "--config.train.steps=5", f"--workdir={tmp_path / 'run'}"]) == 0
    path = os.pathsep.join([str(tmp_path / "path"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = start([*steps, f"--workdir={tmp_path / 'run'}"], PYTHONPATH=path)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "resumed from step 5" in out
    dates = [entry["date"] for entry in json.loads((tmp_path / "run" / "overrides.json").read_text())]
    assert dates == sorted(dates, reverse=True)  # the clock did fall
    for one, other in zip(
        *(jax.tree.leaves(paperlab.load(tmp_path / n).params) for n in ("run", "whole")), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    lines = [line for line in read(tmp_path / "run" / "metrics.jsonl") if "seconds" in line]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert all(0 < one["seconds"] < two["seconds"] for one, two in itertools.pairwise(lines))
    assert all(0 <= line["data_wait"] <= 1 and line["steps_per_second"] > 0 for line in lines)

"""Steps that go wrong: discarded, skipped, rolled back, written down; killed at any moment the run comes to the same end."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from paperlab.errors import ConfigError
from paperlab.training import setup
from paperlab.training.checkpoint import all_steps, restore
from paperlab.training.incidents import Incidents, read
from paperlab.training.loop import train
from paperlab.training.metrics import WATCHED, FaultError, NonFiniteError, SpikeError
from paperlab.training.step import make_train_step
from tests.training.faulty_task import FaultyTask
from tests.training.test_resume import Killed, assert_same, kill, stop_at, without_times
from tests.training.tiny_task import tiny_config

STEPS = 12
SPIKES = {"faults__spike": 6.0, "faults__warmup": 4}


def config(policy, **changes):
    return tiny_config(**{"train__steps": STEPS, "train__ema_decay": 0.9, "faults__policy": policy, **changes})


def final(workdir, step=STEPS, **changes):
    one = config("stop", **changes)
    return restore(workdir / "checkpoints" / str(step), setup.prepare(one, FaultyTask()).shapes).tree


def incidents(workdir):
    lines, damaged = read(workdir / "incidents.jsonl")
    assert damaged == 0
    return [{name: value for name, value in line.items() if name not in ("date", "what")} for line in lines]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An uninterrupted run without a fault: (work directory, last state)."""
    workdir = tmp_path_factory.mktemp("sound")
    train(config("stop"), workdir, FaultyTask())
    return workdir, final(workdir)


@pytest.fixture(scope="module")
def without_4_and_5(tmp_path_factory):
    """An uninterrupted run on data in which there are no batches 4 and 5."""
    workdir = tmp_path_factory.mktemp("without")
    train(config("stop"), workdir, FaultyTask(left_out=(4, 5)))
    return workdir, final(workdir)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_without_a_fault_every_policy_computes_the_same_bit_for_bit(tmp_path, sound, policy):
    summary = train(config(policy, faults__spike=50.0, faults__warmup=2, faults__decay=0.9), tmp_path, FaultyTask())
    got = final(tmp_path)
    assert_same(got._replace(guard=None), sound[1]._replace(guard=None))
    assert without_times(tmp_path) == without_times(sound[0])
    assert all(set(WATCHED).isdisjoint(line) for line in without_times(tmp_path))
    assert summary["incidents"] == {"skip": 0, "rollback": 0}
    assert not (tmp_path / "incidents.jsonl").exists()


def by_hand(task, bad, steps=STEPS):
    """The states that single steps give when those on `bad` batches are left out by hand."""
    one = config("stop")
    _, optimizer = setup.abstract_state(one, task, task.batch(0))
    key = jax.random.key(one.seed)
    state = jax.jit(lambda key: setup.initial_state(one, task, optimizer, key, task.batch(0)))(key)
    step = jax.jit(make_train_step(task, optimizer, ema_decay=0.9))
    for index in range(steps):
        moved = step(state, task.batch(index), key)[0]
        state = state._replace(step=state.step + 1, data_index=state.data_index + 1) if index in bad else moved
    return state


def test_a_skipped_step_changes_nothing_but_the_counts(tmp_path, capsys):
    task = FaultyTask(nan=(5, 6))
    summary = train(config("skip"), tmp_path, task)
    got, want = final(tmp_path), by_hand(task, bad=(5, 6))
    assert_same(got, want)
    assert int(got.step) == int(got.data_index) == STEPS
    assert int(got.guard.accepted) == STEPS - 2
    assert summary["incidents"] == {"skip": 2, "rollback": 0}
    assert [(line["step"], line["skipped"]) for line in without_times(tmp_path) if "skipped" in line] == [
        (6, 1),
        (8, 1),
    ]
    assert all(np.isfinite(line["loss"]) for line in without_times(tmp_path) if "loss" in line)
    assert incidents(tmp_path) == [
        {"kind": "skip", "step": index + 1, "cause": "nonfinite", "data": [index, index]} for index in (5, 6)
    ]
    told = [line for line in capsys.readouterr().out.splitlines() if "skipped with batch" in line]
    assert [line.split(":")[0] for line in told] == ["step 6", "step 7"]


def test_a_window_of_skipped_steps_alone_is_reported(tmp_path):
    train(config("skip"), tmp_path, FaultyTask(nan=(4, 5)))
    line = next(line for line in without_times(tmp_path) if line["step"] == 6)
    assert line == {"step": 6, "skipped": 2}


def test_too_many_skips_in_a_row_stop(tmp_path):
    task = FaultyTask(nan=(1, 3, 4, 5, 6))
    with pytest.raises(NonFiniteError, match=r"step 7: .*more than config\.faults\.skips=3 steps in a row.*of step 6"):
        train(config("skip", faults__skips=3), tmp_path, task)
    assert "\n" not in read(tmp_path / "incidents.jsonl")[0][-1]["what"]
    assert [line["kind"] for line in incidents(tmp_path)] == ["skip"] * 4 + ["stop"]
    with pytest.raises(NonFiniteError, match="step 7"):  # the count in a row is part of the state
        train(config("skip", faults__skips=3), tmp_path, task)
    assert train(config("skip", faults__skips=4), tmp_path, task)["incidents"]["skip"] == 5
    assert_same(final(tmp_path), by_hand(task, bad=task.nan))


@pytest.mark.parametrize("stop", [4, 6, 7])
def test_skips_of_steps_that_are_taken_again_are_written_once(tmp_path, stop):
    task = FaultyTask(nan=(2, 4))
    with pytest.raises(Killed):
        train(config("skip"), tmp_path, task, on_step=stop_at(stop, kill))
    assert incidents(tmp_path)[-1]["step"] == (5 if stop > 4 else 3)
    train(config("skip"), tmp_path, task)
    assert [line["step"] for line in incidents(tmp_path)] == [3, 5]
    assert_same(final(tmp_path), by_hand(task, bad=(2, 4)))


def test_a_rollback_goes_on_as_if_its_data_did_not_exist(tmp_path, without_4_and_5, capsys):
    summary = train(config("rollback"), tmp_path, FaultyTask(nan=(5,)))
    got = final(tmp_path)
    assert_same(got._replace(data_index=None), without_4_and_5[1]._replace(data_index=None))
    assert int(got.data_index) == STEPS + 2
    assert without_times(tmp_path) == without_times(without_4_and_5[0])
    assert summary["incidents"] == {"skip": 0, "rollback": 1}
    assert incidents(tmp_path) == [{"kind": "rollback", "step": 6, "cause": "nonfinite", "restored": 4, "data": [4, 5]}]
    told = [line for line in capsys.readouterr().out.splitlines() if "back to step" in line]
    assert len(told) == 1
    assert told[0].endswith("back to step 4, batches 4 to 5 are left out")


class KilledAgain:
    """Kills at the n-th time that a step is passed."""

    def __init__(self, step, times):
        self.step, self.times = step, times

    def __call__(self, now, _):
        self.times -= now == self.step
        if now == self.step and not self.times:
            raise Killed


@pytest.mark.parametrize(("step", "times"), [(5, 2), (6, 2), (7, 1), (12, 1)])
def test_killed_after_a_rollback_it_comes_to_the_same_end(tmp_path, without_4_and_5, step, times):
    """(5, 2) is the first step after the run went back to step 4, before anything new was saved."""
    with pytest.raises(Killed):
        train(config("rollback"), tmp_path, FaultyTask(nan=(5,)), on_step=KilledAgain(step, times))
    assert len(incidents(tmp_path)) == 1
    train(config("rollback"), tmp_path, FaultyTask(nan=(5,)))
    got = final(tmp_path)
    assert_same(got._replace(data_index=None), without_4_and_5[1]._replace(data_index=None))
    assert without_times(tmp_path) == without_times(without_4_and_5[0])
    assert len(incidents(tmp_path)) == 1


def test_after_a_rollback_an_earlier_checkpoint_leads_to_the_same_end(tmp_path, without_4_and_5, capsys):
    train(config("rollback", checkpoint__keep=9), tmp_path, FaultyTask(nan=(5,)))
    for step in (4, 6, 8, 10, 12):
        (tmp_path / "checkpoints" / str(step) / "metadata" / "metadata").write_text("")
    capsys.readouterr()
    train(config("stop"), tmp_path, FaultyTask(nan=(5,)))
    assert "resumed from step 2" in capsys.readouterr().out
    assert_same(final(tmp_path)._replace(data_index=None), without_4_and_5[1]._replace(data_index=None))


def test_before_the_first_checkpoint_a_rollback_goes_to_the_start(tmp_path):
    one = config("rollback", train__checkpoint_every=6)
    train(one, tmp_path / "back", FaultyTask(nan=(2, 5)))
    train(one, tmp_path / "want", FaultyTask(left_out=range(6)))
    assert [line["data"] for line in incidents(tmp_path / "back")] == [[0, 2], [0, 5]]
    got, want = final(tmp_path / "back"), final(tmp_path / "want")
    assert_same(got._replace(data_index=None), want._replace(data_index=None))
    assert without_times(tmp_path / "back") == without_times(tmp_path / "want")


def test_rollbacks_to_one_checkpoint_come_to_an_end(tmp_path):
    """What no data mends stops with one line, and the same command says so again; another policy goes on from there."""
    task = FaultyTask(nan=range(5, 400))
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"it went back 2 times since then .* of step 4; lower"):
            train(config("rollback", faults__rollbacks=2), tmp_path, task)
        assert [line["kind"] for line in incidents(tmp_path)] == ["rollback", "rollback", "stop"]
    assert train(config("rollback"), tmp_path, FaultyTask())["incidents"]["rollback"] == 2
    assert int(final(tmp_path).data_index) == STEPS + 3  # batches 4, 5 and 6 stay left out


def test_a_new_checkpoint_gives_new_rollbacks(tmp_path):
    summary = train(config("rollback", faults__rollbacks=1), tmp_path, FaultyTask(nan=(3, 6, 9, 12)))
    assert summary["incidents"]["rollback"] == 4
    assert len({line["restored"] for line in incidents(tmp_path)}) == 4


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_spike_is_a_fault_when_asked_for(tmp_path, policy):
    task = FaultyTask(wild=(8,))
    if policy == "stop":
        with pytest.raises(SpikeError, match=r"step 9: loss .* is a spike, .* the last checkpoint is of step 8; lower"):
            train(config(policy, **SPIKES), tmp_path, task)
        assert incidents(tmp_path)[0]["cause"] == "spike"
        return
    summary = train(config(policy, **SPIKES), tmp_path, task)
    assert summary["incidents"] == {"skip": 0, "rollback": 0, policy: 1}
    assert incidents(tmp_path)[0]["step"] == 9
    assert all(line["loss"] < 50 for line in without_times(tmp_path) if "loss" in line)
    off = train(config(policy), tmp_path / "off", task)
    assert off["incidents"] == {"skip": 0, "rollback": 0}


def test_an_update_that_would_break_the_parameters_is_no_update(tmp_path):
    """Loss and gradient are finite, the rate is not of this world: no checkpoint ever holds what came of it."""
    rate = {"optim__name": "sgd", "optim__clip": 0.0, "optim__lr": 3e38, "faults__skips": 99}
    wild = FaultyTask(wild=range(400))
    told = r"step 1: its update would make \d+ parameters NaN or infinite"
    with pytest.raises(NonFiniteError, match=told):
        train(config("stop", **rate), tmp_path / "stop", wild)
    assert train(config("skip", **rate), tmp_path / "skip", wild)["incidents"]["skip"] == STEPS
    start = by_hand(wild, bad=range(STEPS))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(start.params))
    assert_same(final(tmp_path / "skip", **rate).params, start.params)


def test_the_last_step_is_watched_too(tmp_path):
    summary = train(config("rollback"), tmp_path, FaultyTask(nan=(11,)))
    assert (summary["status"], summary["steps"]) == ("complete", STEPS)
    assert incidents(tmp_path)[0]["restored"] == 10


def test_a_damaged_line_is_dropped_with_a_word_and_the_rest_kept(tmp_path, capsys):
    """Its windows are those of good lines alone: a flipped digit would leave other data out."""
    lines = Incidents(tmp_path)
    fault = NonFiniteError("step 6: loss nan", step=6)
    lines.add("rollback", fault, restored=4, data=[4, 5])
    lines.add("rollback", fault, restored=8, data=[8, 9])
    file = tmp_path / "incidents.jsonl"
    first, second = file.read_bytes().splitlines()
    file.write_bytes(first.replace(b"[4, 5]", b"[4, 7]") + b"\n" + second + b"\n\xff\x00{\n" + second[:20])
    again = Incidents(tmp_path)
    assert capsys.readouterr().out.count("\n") == 1
    assert [line["data"] for line in again.lines] == [[8, 9]]
    assert (again.next_batch(4), again.next_batch(8), again.until(0), again.until(8)) == (4, 10, 8, None)
    assert (again.rollbacks_to(4), again.rollbacks_to(8)) == (0, 1)
    assert read(file) == (again.lines, 0)


def test_windows_that_overlap_are_one():
    class There(Incidents):
        def __init__(self, windows):
            self._rollbacks = [[0, *window] for window in windows]

    left_out = There([(4, 5), (4, 9), (10, 12), (20, 20)])
    assert [left_out.next_batch(i) for i in (3, 4, 7, 13, 20)] == [3, 13, 13, 13, 21]
    assert [left_out.until(i) for i in (0, 4, 13, 21)] == [4, 10, 20, None]


def test_killed_for_real_right_after_a_rollback(tmp_path, without_4_and_5):
    command = [sys.executable, "-m", "tests.training.faulty_task", str(tmp_path), "faults__policy=rollback"]
    process = subprocess.Popen([*command, "train__ema_decay=0.9"], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "back to step 4" in line:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL
    assert json.loads((tmp_path / "incidents.jsonl").read_text())["data"] == [4, 5]
    assert all_steps(tmp_path / "checkpoints") == [2, 4]
    train(config("rollback"), tmp_path, FaultyTask(nan=(5,)))
    assert_same(final(tmp_path)._replace(data_index=None), without_4_and_5[1]._replace(data_index=None))


def test_what_one_process_rolled_back_two_leave_out(tmp_path):
    """Killed right after a rollback; the two that go on have the window from the first one's reading of the file."""
    two_devices = config("rollback", mesh__data=2)
    train(config("stop", mesh__data=2), tmp_path / "want", FaultyTask(left_out=(4, 5)))
    with pytest.raises(Killed):
        train(two_devices, tmp_path / "run", FaultyTask(nan=(5,)), on_step=KilledAgain(5, 2))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"localhost:{free.getsockname()[1]}"
    flags = ["faults__policy=rollback", "train__ema_decay=0.9", "mesh__data=2"]
    command = [sys.executable, "-m", "tests.training.faulty_task", str(tmp_path / "run"), *flags]
    one_device = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "COORDINATOR": where, "PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **one_device, "PROCESS": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    told = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert "resumed from step 4" in told[0]
    assert len(incidents(tmp_path / "run")) == 1
    got, want = final(tmp_path / "run"), final(tmp_path / "want")
    assert int(got.data_index) == STEPS + 2
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6), got.params, want.params)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("policy", "skipp", "did you mean 'skip'"),
        ("spike", -1.0, "spike=-1.0: must"),
        ("decay", 1.0, "decay=1.0: must"),
        ("warmup", 0, "warmup=0: must"),
        ("skips", 0, "skips=0: must"),
        ("rollbacks", -1, "rollbacks=-1: must"),
    ],
)
def test_what_no_policy_can_be_is_refused(field, value, told):
    from paperlab.config import check_faults

    with pytest.raises(ConfigError, match=told):
        check_faults(config("stop", **{f"faults__{field}": value}).faults)


def test_every_fault_is_one():
    assert issubclass(SpikeError, FaultError)
    assert {SpikeError.cause, NonFiniteError.cause} == {"spike", "nonfinite"}

"""One run at a time in a work directory: a live run, others beside it, and what its death leaves behind."""

import contextlib
import errno
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
from paperlab import lock
from paperlab.errors import ConfigError
from paperlab.run import main
from tests.test_run import TINY


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """(flags, work directory, process) of a run that has saved and goes on."""
    folder, workdir = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("runs") / "live"
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"document {i} " + "abc " * (40 + 3 * i))
    flags = [*TINY, f"--config.data.path={folder}", f"--workdir={workdir}", "--config.train.checkpoint_every=50"]
    command = [
        sys.executable,
        "-m",
        "paperlab.run",
        *flags,
        "--config.train.steps=1000000",
        "--config.checkpoint.keep=99",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (workdir / "checkpoints" / "50").is_dir() and time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGSTOP)  # it keeps the lock and takes no processor
    yield flags, workdir, process
    process.kill()
    process.wait()
    process.stderr.close()


def contents(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_a_second_run_is_refused_and_told_who_is_there(live, capsys):
    flags, workdir, process = live
    before = contents(workdir)
    assert main([*flags, "--config.train.steps=7"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--workdir: {workdir} is in use by process {process.pid} on {os.uname().nodename} since 20" in error
    assert contents(workdir) == before
    with pytest.raises(ConfigError, match=f"process {process.pid}"):
        paperlab.train(paperlab.load(workdir).config, workdir)
    assert contents(workdir) == before


def test_beside_a_live_run_it_can_be_evaluated_and_loaded_and_nothing_is_written(live, capsys):
    flags, workdir, _ = live
    before = contents(workdir)
    assert main([*flags, "--eval_only"]) == 0
    assert "whole splits" in capsys.readouterr().out
    assert paperlab.load(workdir).step >= 50
    assert contents(workdir) == before


def test_evaluation_alone_refuses_another_mathematics(live, capsys):
    flags, workdir, _ = live
    before = contents(workdir)
    assert main([*flags, "--eval_only", "--config.optim.lr=0.5"]) == 2
    assert "config.optim.lr: 0.003 -> 0.5" in capsys.readouterr().err
    assert contents(workdir) == before


def test_killed_it_leaves_no_lock_behind(live, capsys):
    """The last of this file that needs the live run."""
    flags, workdir, process = live
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((workdir / lock.NAME).read_text())["process"] == process.pid
    saved = paperlab.load(workdir).step
    assert main([*flags, f"--config.train.steps={saved + 1}"]) == 0
    assert f"resumed from step {saved}" in capsys.readouterr().out
    assert (workdir / lock.NAME).read_text() == ""
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(paperlab.load(workdir).params))


def attempt(workdir):
    """What another thread of this process is told, "" if nothing."""
    told = []

    def run():
        try:
            with lock.hold(workdir):
                told.append("")
        except ConfigError as error:
            told.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return told[0]


def test_the_same_thread_may_ask_again_and_another_may_not(tmp_path):
    with lock.hold(tmp_path / "run"):
        with lock.hold(tmp_path / "run"):
            assert f"in use by process {os.getpid()}" in attempt(tmp_path / "run")
        assert "in use" in attempt(tmp_path / "run")
        assert attempt(tmp_path / "another") == ""
    assert attempt(tmp_path / "run") == ""


def test_an_error_gives_it_back(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), lock.hold(tmp_path):
        raise KeyboardInterrupt
    assert attempt(tmp_path) == ""


@pytest.mark.parametrize("said", ["", "{", "[1]", '{"process": "x", "host": 1}', "\x00" * 5000])
def test_who_holds_it_may_be_unreadable(tmp_path, said):
    with lock.hold(tmp_path):
        (tmp_path / lock.NAME).write_text(said)
        assert "is in use by another run" in attempt(tmp_path)


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, capsys):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with lock.hold(tmp_path):
        assert attempt(tmp_path) == ""
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[0].startswith(f"Note: {tmp_path} cannot be locked")


def test_what_cannot_be_made_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for place, told in ((file, "is a file"), (file / "below", "cannot write")):
        with pytest.raises(ConfigError, match=told), lock.hold(place):
            pass

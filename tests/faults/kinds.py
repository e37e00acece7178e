"""The faults. Each makes one work directory, hurts the run in it, and returns once the run has come to its end.

A fault gets a `Round`. Whatever a process of it says on stderr must be single lines without a traceback; it must end
with a status that the fault allows; and what `ending.differences` compares in the end is checked by the campaign.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from paperlab.training.checkpoint import all_steps
from tests.faults.damage import WAYS, files_of, hurt
from tests.faults.processes import EVERY, LOG_EVERY, STEPS, Launcher, Process

DONE, FAILED, REFUSED, INTERRUPTED, AT_ONCE = 0, 1, 2, 75, 130


class RoundError(AssertionError):
    """A run did not survive its fault; the message says how."""


@dataclass
class Round:
    """One work directory and what happens to it.

    Args:
      half: a run that was killed after half of its steps, to be copied.
      whole_seconds: how long the uninterrupted run took.
      notes: what was done, for the record of a failure.
    """

    launcher: Launcher
    workdir: Path
    half: Path
    whole_seconds: float
    rng: random.Random
    notes: list[str] = field(default_factory=list)
    metrics_from: int = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, *more: str, largest: int | None = None) -> Process:
        """Starts the run; one in five with an interpreter of its own."""
        return self.launcher.start(self.workdir, *more, fresh=self.rng.random() < 0.2, largest=largest)

    def end(self, process: Process, allowed: set[int]) -> int:
        """Waits for the end of a process. Raises RoundError for another status, a traceback, or more than one error."""
        status = process.wait()
        self.note(f"status {status}")
        err = process.err
        errors = [line for line in err.splitlines() if line.startswith("error:")]
        if status not in allowed:
            raise RoundError(f"status {status}, expected {sorted(allowed)}: {err.strip()[-300:] or process.out[-300:]}")
        if any(sign in err for sign in ("Traceback", "Exception ignored", "never awaited", "never retrieved")):
            raise RoundError(f"a traceback (status {status}): {err.strip()[:300]}")
        if len(errors) != (status in (FAILED, REFUSED)):
            raise RoundError(f"{len(errors)} lines of error with status {status}: {err.strip()[:300]}")
        return status

    def finish(self) -> Process:
        """The same command again, to the end."""
        process = self.start()
        self.end(process, {DONE})
        return process

    def take_half(self) -> None:
        shutil.copytree(self.half, self.workdir)

    def moment(self, process: Process) -> None:
        """Waits for a moment of the run: one in three anywhere in its life, else among its steps, to within a step."""
        if self.rng.random() < 1 / 3:
            seconds = self.rng.uniform(0, self.whole_seconds)
            self.note(f"after {seconds:.2f} s")
            end = time.monotonic() + seconds
            process.until(lambda: time.monotonic() > end)
            return
        bytes_of_a_line, line = 300, self.rng.randrange(STEPS // LOG_EVERY)
        self.note(f"after about {line} lines of metrics")
        file = self.workdir / "metrics.jsonl"
        process.until(lambda: file.exists() and file.stat().st_size > line * bytes_of_a_line)
        time.sleep(self.rng.uniform(0, 0.02))

    def save(self, process: Process) -> None:
        """Waits until a checkpoint is being written, and a moment more."""
        step, folder = self.rng.randrange(STEPS), self.workdir / "checkpoints"

        def writing() -> bool:
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                return False
            return any("tmp" in name and int(name.split(".")[0]) >= step for name in names)

        seconds = self.rng.uniform(0, 0.06)
        self.note(f"{1000 * seconds:.0f} ms into the first save from step {step} on")
        if process.until(writing, pause=0.0005):
            time.sleep(seconds)

    def checkpoints(self) -> list[Path]:
        return [self.workdir / "checkpoints" / str(step) for step in all_steps(self.workdir / "checkpoints")]

    def hurt(self, file: Path, way: str = "") -> None:
        self.note(f"{file.parent.name}/" + hurt(file, way or self.rng.choice(WAYS), self.rng))


# processes


def killed(run: Round) -> None:
    """SIGKILL at a random moment."""
    process = run.start()
    run.moment(process)
    process.send(signal.SIGKILL)
    run.end(process, {-signal.SIGKILL, DONE})
    run.finish()


def killed_while_saving(run: Round) -> None:
    """SIGKILL while a checkpoint is written."""
    process = run.start()
    run.save(process)
    process.send(signal.SIGKILL)
    run.end(process, {-signal.SIGKILL, DONE})
    run.finish()


def killed_again_and_again(run: Round) -> None:
    """SIGKILL at a random moment, three times."""
    for _ in range(3):
        process = run.start()
        run.moment(process)
        process.send(signal.SIGKILL)
        run.end(process, {-signal.SIGKILL, DONE})
    run.finish()


def asked_to_stop(run: Round) -> None:
    """SIGTERM, SIGINT or SIGUSR1 at a random moment."""
    number = run.rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    run.note(number.name)
    process = run.start()
    run.moment(process)
    process.send(number)
    early = {-number, AT_ONCE}  # before the program has said what it does with signals
    run.end(process, {INTERRUPTED, DONE, *early})
    run.finish()


def asked_to_stop_while_saving(run: Round) -> None:
    """SIGTERM while a checkpoint is written: that one is completed."""
    process = run.start()
    run.save(process)
    process.send(signal.SIGTERM)
    run.end(process, {INTERRUPTED, DONE})
    if not run.checkpoints():
        raise RoundError("asked to stop while saving, and nothing was saved")
    run.finish()


def stopped_at_once(run: Round) -> None:
    """SIGINT twice."""
    process = run.start()
    run.moment(process)
    process.send(signal.SIGINT)
    time.sleep(run.rng.uniform(0, 0.01))
    process.send(signal.SIGINT)
    run.end(process, {AT_ONCE, INTERRUPTED, DONE, -signal.SIGINT})
    run.finish()


def started_twice(run: Round) -> None:
    """A second run in the same work directory is refused, and the first does not notice."""
    process = run.start()
    process.until((run.workdir / "metrics.jsonl").exists)
    second = run.start()
    if run.end(second, {REFUSED, DONE}) == REFUSED and "is in use by" not in second.err:
        raise RoundError(f"the second was refused for another reason: {second.err[:200]}")
    run.end(process, {DONE})


# checkpoints


def damaged_checkpoint_file(run: Round) -> None:
    """Any file of the newest checkpoint is flipped, cut, missing or garbage."""
    run.take_half()
    newest = run.checkpoints()[-1]
    files = files_of(newest)
    read = [file for file in files if file.name not in ("commit_success.txt", "_CHECKPOINT_METADATA", "_sharding")]
    run.hurt(run.rng.choice(read if run.rng.random() < 0.8 else files))
    before = run.checkpoints()
    process = run.finish()
    said = process.out.count(" is damaged (")
    aside = list((run.workdir / "checkpoints").glob("*.damaged"))
    if said != len(aside) or said > 1:
        raise RoundError(f"{said} lines about damage, {len(aside)} checkpoints set aside")
    used = before[-1 - said].name
    if f"resumed from step {used}" not in process.out:
        raise RoundError(f"did not resume from step {used}")


def damaged_bytes_everywhere(run: Round) -> None:
    """All files of the newest checkpoint are damaged, each in a way of its own, and two more in the one before."""
    run.take_half()
    *_, before, newest = run.checkpoints()
    for file in files_of(newest):
        run.hurt(file)
    for file in run.rng.sample(files_of(before), 2):
        run.hurt(file)
    run.finish()


def all_checkpoints_damaged(run: Round) -> None:
    """No good checkpoint is left: refused, nothing touched; from the start once a person has removed them."""
    run.take_half()
    for checkpoint in run.checkpoints():
        run.hurt(checkpoint / "metadata" / "metadata", run.rng.choice([way for way in WAYS if way != "flipped"]))
    before = files_of(run.workdir / "checkpoints")
    process = run.start()
    run.end(process, {REFUSED})
    if "has no good checkpoint left" not in process.err:
        raise RoundError(f"refused for another reason: {process.err[:200]}")
    if files_of(run.workdir / "checkpoints") != before:
        raise RoundError("files were removed or renamed although nothing good was left")
    shutil.rmtree(run.workdir / "checkpoints")
    run.finish()


def leftovers(run: Round) -> None:
    """Half-written saves, partial files and the lock of a process that is gone lie about."""
    run.take_half()
    newest = run.checkpoints()[-1]
    half = newest.with_name(f"{int(newest.name) + EVERY}.orbax-checkpoint-tmp")
    shutil.copytree(newest, half)
    run.hurt(run.rng.choice(files_of(half)))
    shutil.copytree(newest / "state", newest.with_name(f"{newest.name}.orbax-checkpoint-tmp-deleted"))
    (run.workdir / ".metrics.jsonl.part").write_text('{"step": 1')
    (run.workdir / ".lock").write_text(json.dumps({"host": "elsewhere", "process": 1, "since": "yesterday"}))
    run.finish()


# the other files of a work directory


def damaged_metrics(run: Round) -> None:
    """metrics.jsonl ends in half a line, or is damaged; later lines must come out right."""
    run.take_half()
    file = run.workdir / "metrics.jsonl"
    if run.rng.random() < 0.5:
        run.note("half a line")
        with file.open("ab") as out:
            out.write(b'{"step": 999, "loss": 4.')
    else:
        run.hurt(file)
        run.metrics_from = int(run.checkpoints()[-1].name)
    run.finish()


def damaged_notes(run: Round) -> None:
    """config.json, overrides.json, incidents.jsonl, summary.json or parameters.txt is damaged or gone."""
    run.take_half()
    (run.workdir / "incidents.jsonl").touch()
    (run.workdir / "summary.json").write_text('{"status": "interrupted"}\n')
    name = run.rng.choice(["config.json", "overrides.json", "incidents.jsonl", "summary.json", "parameters.txt"])
    run.hurt(run.workdir / name)
    run.finish()


# disks


def full_disk(run: Round) -> None:
    """The disk is full at some point; when there is room the same command goes on."""
    kilobytes = run.rng.randrange(8, 900)
    run.note(f"{kilobytes} KiB")
    run.workdir.mkdir()
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(run.workdir))
    try:
        process = run.start()
        run.end(process, {FAILED, REFUSED, DONE})
        left = run.checkpoints()
        mount("-o", "remount,size=64m", str(run.workdir))
        again = run.finish()
        if left and "resumed from step" not in again.out:
            raise RoundError("what had been saved was not used")
        shutil.copytree(run.workdir, run.workdir.with_name("saved"))
    finally:
        subprocess.run(["umount", str(run.workdir)], check=True)
    shutil.rmtree(run.workdir)
    run.workdir.with_name("saved").rename(run.workdir)


def limited_files(run: Round) -> None:
    """No file may grow beyond a limit (RLIMIT_FSIZE); without it the same command goes on."""
    largest = run.rng.choice([1 << 10, 4 << 10, 16 << 10, 48 << 10, 96 << 10])
    run.note(f"limit {largest}")
    run.end(run.start(largest=largest), {FAILED, REFUSED, DONE})
    run.finish()


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Whether a file system can be made here, which takes root."""
    try:
        mount("-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


KINDS: dict[str, Callable[[Round], None]] = {
    one.__name__: one
    for one in (
        killed,
        killed_while_saving,
        damaged_checkpoint_file,
        asked_to_stop,
        full_disk,
        damaged_bytes_everywhere,
        asked_to_stop_while_saving,
        damaged_metrics,
        killed_again_and_again,
        all_checkpoints_damaged,
        stopped_at_once,
        damaged_notes,
        started_twice,
        limited_files,
        leftovers,
    )
}
WEIGHTS = {"killed": 2, "killed_while_saving": 3, "damaged_checkpoint_file": 4}  # of a cycle; one each for the others

"""The run that the faults hit: a tiny language model through the front door, in processes of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS, EVERY, LOG_EVERY = 40, 5, 2
ARGUMENTS = (
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
    "--config.evaluators.val.every=10",
    f"--config.train.steps={STEPS}",
    f"--config.train.checkpoint_every={EVERY}",
    f"--config.train.log_every={LOG_EVERY}",
)
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
TIMEOUT = 180.0  # seconds after which a process counts as hanging


class HangingError(RuntimeError):
    """A process did not end."""


class Process:
    """One run of the front door, started by `Launcher.start`."""

    def __init__(self, folder: Path, wait_for: Callable[[], int | None], pid: Callable[[], int]):
        self.folder, self._poll, self._pid = folder, wait_for, pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._poll()

    def wait(self) -> int:
        """The exit status. Raises HangingError after `TIMEOUT`, and kills the process."""
        self.until(lambda: False)
        status = self.poll()
        assert status is not None
        return status

    def until(self, true: Callable[[], bool], pause: float = 0.002) -> bool:
        """Waits for `true()` or for the end of the process; whether it still runs."""
        end = time.monotonic() + TIMEOUT
        while self.poll() is None:
            if true():
                return True
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise HangingError(f"no end after {TIMEOUT:.0f} s")
            time.sleep(pause)
        return False

    def send(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            try:
                os.kill(self._pid(), number)
            except ProcessLookupError:
                return

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(errors="replace")


class Launcher:
    """Starts runs on the same text; `with Launcher(folder) as launcher`. What they print goes below `folder`.

    They run a copy of the sources as they are now, so that nobody's work on them makes two runs differ.
    """

    def __init__(self, folder: Path):
        self.folder, self._count, self._server = folder, 0, None
        self.source = folder / "source"
        for name in ("paperlab", "kernels_pallas", "experiments", "tests/faults"):
            shutil.copytree(ROOT / name, self.source / name, dirs_exist_ok=True)
        self.text = folder / "text"
        self.text.mkdir(parents=True, exist_ok=True)
        for i in range(8):
            (self.text / f"{i}.txt").write_text(f"document {i} " + "abc " * (40 + 3 * i))
        self._environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(self.source)}
        self._environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "jax"))

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()

    def start(self, workdir: Path, *more: str, fresh: bool = False, largest: int | None = None) -> Process:
        """Starts `python -m paperlab.run`: a new interpreter if `fresh`, else forked from one that has imported all.

        Args:
          largest: limit on the size of the files that it writes, in bytes.
        """
        self._count += 1
        place = self.folder / "processes" / str(self._count)
        place.mkdir(parents=True)
        argv = [*ARGUMENTS, f"--config.data.path={self.text}", f"--workdir={workdir}", *more]
        return self._interpreter(place, argv) if fresh and largest is None else self._fork(place, argv, largest)

    def _interpreter(self, place: Path, argv: list[str]) -> Process:
        with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
            command = [sys.executable, "-m", "paperlab.run", *argv]
            process = subprocess.Popen(
                command, cwd=self.source, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        return Process(place, process.poll, lambda: process.pid)

    def _fork(self, place: Path, argv: list[str], largest: int | None) -> Process:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.forkserver"],
                cwd=self.source,
                env=self._environment,
                stdin=subprocess.PIPE,
                text=True,
            )
        files = {name: str(place / name) for name in ("out", "err", "pid", "status")}
        for name in ("out", "err"):
            (place / name).touch()
        self._server.stdin.write(json.dumps({"argv": argv, "largest": largest, **files}) + "\n")
        self._server.stdin.flush()
        end = time.monotonic() + TIMEOUT
        while not (place / "pid").exists():
            if time.monotonic() > end or self._server.poll() is not None:
                raise HangingError("the process that starts the others has ended or hangs")
            time.sleep(0.002)
        pid = int((place / "pid").read_text())

        def status() -> int | None:
            file = place / "status"
            return int(file.read_text()) if file.exists() else None

        return Process(place, status, lambda: pid)

"""Real processes of the front door, as a launcher would start them, on the loopback interface."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds after which a hang is a failure

TINY = [
    f"--config={ROOT / 'experiments' / 'gla.py'}",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.unroll=1",
    "--config.mixers.gla.short_conv=false",
    "--config.data.sequence_length=16",
    "--config.data.batch_size=8",
    "--config.data.validation_share=0.3",
    "--config.evaluators.val.batches=1",
]


def text_folder(folder: Path) -> Path:
    """Eight small documents."""
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"document {i} " + "abc " * (40 + 3 * i))
    return folder


def free_port(lowest: int = 20_000, highest: int = 29_999) -> int:
    """A port that nobody listens on, below those that the system gives out by itself."""
    while True:
        port = random.SystemRandom().randint(lowest, highest)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def environment(devices: int = 1) -> dict[str, str]:
    """One CPU device a process, and no more threads than that."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


class Processes:
    """`python -m paperlab.run` several times, told who they are by flags; `own` are the flags of single ones."""

    def __init__(
        self, count: int, flags: list[str], folder: Path, *, devices: int = 1, cwd: dict[int, Path] | None = None
    ):
        folder.mkdir(exist_ok=True)
        self.folder, port = folder, free_port()
        self.files = [(folder / f"out.{i}", folder / f"err.{i}") for i in range(count)]
        self.running = []
        for i, (out, err) in enumerate(self.files):
            place = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={i}"]
            command = [sys.executable, "-m", "paperlab.run", *flags, *place]
            with out.open("w") as stdout, err.open("w") as stderr:
                self.running.append(
                    subprocess.Popen(
                        command, stdout=stdout, stderr=stderr, cwd=(cwd or {}).get(i, ROOT), env=environment(devices)
                    )
                )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()

    def until(self, path: Path) -> None:
        """Waits for something that the run writes."""
        end = time.monotonic() + PATIENCE
        while not path.exists():
            assert all(process.poll() is None for process in self.running), self.errors()
            assert time.monotonic() < end, f"{path} did not come"
            time.sleep(0.02)

    def kill(self, process: int, number: signal.Signals) -> None:
        self.running[process].send_signal(number)

    def statuses(self) -> list[int]:
        """Of all, when all have ended."""
        end = time.monotonic() + PATIENCE
        return [process.wait(timeout=max(end - time.monotonic(), 0.1)) for process in self.running]

    def output(self) -> list[str]:
        return [out.read_text() for out, _ in self.files]

    def errors(self) -> list[str]:
        """What stood on standard error, after the relays have had the time to say their last."""
        time.sleep(0.3)
        return [err.read_text() for _, err in self.files]

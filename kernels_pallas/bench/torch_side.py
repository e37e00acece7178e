"""The way to the peers that need PyTorch: a process of its own beside this one, asked line by line, restarted where it dies."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import jax.numpy as jnp
import numpy as np

from kernels_pallas.bench.subject import Subject, cut
from kernels_pallas.bench.timing import Plan
from kernels_pallas.bench.torch_process import PEERS

SCRIPT = Path(__file__).with_name("torch_process.py")
SECONDS = 120.0  # for one peer and one pass; Triton tries many block sizes at the first call


class TorchPeers:
    """Asks for one peer after another. A context: leaves no process and no file behind.

    Args:
      python: the interpreter that has PyTorch.
      site: a folder of packages for it, or "".
      seconds: that an answer may take.
    """

    def __init__(self, python: str = sys.executable, site: str = "", seconds: float = SECONDS):
        self.python, self.site, self.seconds = python, site, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self._log = Path(self._folder.name) / "log"
        self._written: tuple[int, str] = (-1, "")
        self._unread = b""

    def __enter__(self) -> "TorchPeers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        self._folder.cleanup()

    def labels(self, op: str) -> list[tuple[str, bool]]:
        """(label, whether it computes the same function) of the peers of an operation."""
        return [(peer.label, peer.same) for peer in PEERS.get(op, [])]

    def measure(self, subject: Subject, label: str, which: str, plan: Plan) -> dict[str, Any]:
        """{"ms": samples, "results": [...], "gradients": [...]}, or {"refused": reason}."""
        out = Path(self._folder.name) / "out"
        out.mkdir(exist_ok=True)
        for old in out.glob("*.npy"):
            old.unlink()
        told = self._ask(self._request(subject, label, which, plan, out))
        if "refused" in told:
            return told
        parts = {kind: [_loaded(out / f"{kind}{n}.npy") for n in range(len(subject.checked))] for kind in ("r",)}
        count = len(list(out.glob("g*.npy")))
        return told | {"results": parts["r"], "gradients": [_loaded(out / f"g{n}.npy") for n in range(count)]}

    def _request(self, subject: Subject, label: str, which: str, plan: Plan, out: Path) -> dict[str, Any]:
        if self._written[0] != subject.number:
            self._written = (subject.number, self._write(subject))
        return {
            "arrays": self._written[1],
            "op": subject.op.name,
            "label": label,
            "which": which,
            "sets": len(subject.sets),
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "results": subject.checked,
            "cotangents": list(range(len(subject.checked))),
            "gradients": [x.shape for x in subject.part if x is not None and jnp.issubdtype(x.dtype, jnp.inexact)],
            "out": str(out),
        }

    def _write(self, subject: Subject) -> str:
        """The arguments of a case and the cotangents of its checked part, as files."""
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        if self._written[1]:
            for old in Path(self._written[1]).iterdir():
                old.unlink()
        dtypes = [None if x is None else str(x.dtype) for x in subject.arrays]
        for number, x in enumerate(subject.arrays):
            if x is not None:
                plain = np.asarray(x)
                np.save(folder / f"{number}.npy", plain.view(np.uint16) if x.dtype == jnp.bfloat16 else plain)
        (folder / "arrays.json").write_text(json.dumps(dtypes), encoding="utf-8")
        for number, (w, shape) in enumerate(zip(subject.cotangents(part=True), subject.checked, strict=True)):
            if shape is not None:
                np.save(folder / f"w{number}.npy", np.asarray(cut(w, shape)).astype(np.float32))
        return str(folder)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process)
        except BrokenPipeError:
            line = b""
        if line is None:
            self._end()
            return {"refused": f"gave no answer in {self.seconds:.0f} s"}
        if not line:
            status = process.wait()
            self._end()
            return {"refused": f"its process ended with status {status}: {self._last_words()}"}
        return json.loads(line)

    def _line(self, process: "subprocess.Popen[bytes]") -> bytes | None:
        """The next line of answers; b"" where the process is gone, None where it takes too long."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(self.seconds):
                    return None
                found = os.read(process.stdout.fileno(), 1 << 16)
                if not found:
                    return b""
                self._unread += found
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            paths = [path for path in (self.site, os.environ.get("PYTHONPATH", "")) if path]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [self.python, "-P", str(SCRIPT)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                )
            self._unread = b""
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1][:300] if lines else "nothing said"


def _loaded(file: Path) -> np.ndarray | None:
    return np.load(file, allow_pickle=False) if file.exists() else None

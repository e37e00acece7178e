"""What went wrong in a run and what was done about it, in `incidents.jsonl`; a rollback decides which data comes next.

    {"kind": "stop" | "skip" | "rollback", "step", "cause": "nonfinite" | "spike", "what", "date", ...}
    rollback also: "restored": step of the checkpoint that it went back to, "data": [first, last] batch that is left out

A rollback is written before the run goes on. Every later start leaves the same batches out, so a run that is killed right
after one comes to the same weights. The other kinds belong to a step, and go when the run goes back before it. Every line
ends with a check sum: a damaged one is dropped with a word.
"""

import datetime
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paperlab.training.metrics import FaultError

NAME = "incidents.jsonl"


class Incidents:
    """The incidents of one run. Process 0 reads and writes the file; the others take over what it read."""

    def __init__(self, workdir: Path, *, say: Callable[[str], None] = print):
        self.file = workdir / NAME
        self._writes = jax.process_index() == 0
        self.lines, damaged = read(self.file) if self._writes else ([], 0)
        if damaged:
            say(f"{self.file}: dropped {damaged} damaged line{'s' * (damaged > 1)}")
            self._write()
        back = np.asarray([[line["restored"], *line["data"]] for line in self.lines if line["kind"] == "rollback"])
        self._rollbacks: list[list[int]] = _agreed(back.astype(np.int32).reshape(-1, 3)).tolist()

    def forget_after(self, step: int) -> None:
        """Drops the incidents of steps that the run takes again; a rollback stays."""
        kept = [line for line in self.lines if line["kind"] == "rollback" or line["step"] <= step]
        if len(kept) < len(self.lines):
            self.lines = kept
            self._write()

    def add(self, kind: str, fault: FaultError, **more: Any) -> None:
        """Writes an incident; it is on the disk on return."""
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"kind": kind, "step": fault.step, "cause": fault.cause, "what": str(fault), "date": date, **more}
        if kind == "rollback":
            self._rollbacks.append([more["restored"], *more["data"]])
        if self._writes:
            self.lines.append(line)
            self._write()

    def rollbacks_to(self, step: int) -> int:
        """How often the run went back to the checkpoint of this step."""
        return sum(restored == step for restored, _, _ in self._rollbacks)

    def next_batch(self, index: int) -> int:
        """The first batch from `index` on that is not left out."""
        while ends := [last for _, first, last in self._rollbacks if first <= index <= last]:
            index = max(ends) + 1
        return index

    def until(self, index: int) -> int | None:
        """Where the next batches that are left out begin, if there are such."""
        return min((first for _, first, _ in self._rollbacks if first > index), default=None)

    def counts(self) -> dict[str, int]:
        """{kind: number} of what was done."""
        found = Counter(line["kind"] for line in self.lines)
        return {kind: found[kind] for kind in ("skip", "rollback")}

    def _write(self) -> None:
        if not self._writes:
            return
        part = self.file.with_name(f".{NAME}.part")
        with part.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({**line, "check": _check(line)}) + "\n" for line in self.lines)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, self.file)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The sound lines of an incidents.jsonl, without their check sums, and the number of damaged ones."""
    if not file.is_file():
        return [], 0
    texts = [text for text in file.read_bytes().split(b"\n") if text.strip()]
    lines = [line for text in texts if (line := _sound(text)) is not None]
    return lines, len(texts) - len(lines)


def _sound(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        return line if line.pop("check") == _check(line) else None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def _check(line: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(line, sort_keys=True).encode()):08x}"


def _agreed(rows: np.ndarray) -> np.ndarray:
    """What process 0 has, on all of them."""
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(rows))))
    mine: Sequence | np.ndarray = rows if len(rows) == count else np.zeros((count, 3), np.int32)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine)) if count else rows

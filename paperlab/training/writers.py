"""Where metrics go: metrics.jsonl always, TensorBoard and W&B when asked. Process 0 writes."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from paperlab.disk import WriteError
from paperlab.errors import ConfigError


class Writer(Protocol):
    """Takes the metrics of a step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one object a line, {"step": 10, "loss": ...}; NaN and infinities as null.

    Args:
      path: the file.
      keep_until: lines of later steps, and a half-written last line, are dropped first; None keeps all whole lines.

    Raises:
      WriteError: the file cannot be written; what stands in it stays.
    """

    def __init__(self, path: Path, *, keep_until: int | None = None):
        self._path = path
        truncate(path, keep_until)
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise WriteError(path, error) from error

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = (json.dumps({"step": step, **plain}) + "\n").encode()
        try:
            while line:  # a disk that is nearly full takes a part first and raises at the next
                line = line[self._file.write(line) or 0 :]
        except OSError as error:
            raise WriteError(self._path, error) from error

    def close(self) -> None:
        self._file.close()


def truncate(path: Path, keep_until: int | None) -> None:
    """Drops lines after step `keep_until` and lines that are no JSON, atomically; says so where those were damaged.

    A last line that was cut off is what a killed run leaves and no news.
    """
    try:
        if not path.exists():
            if keep_until:
                print(f"{path} is missing: the curves begin at step {keep_until}", flush=True)
            return
        raw = path.read_bytes()
        kept, damaged = _parse(raw)
    except OSError as error:
        raise WriteError(path, error) from error
    if damaged:
        lines = "1 damaged line was" if damaged == 1 else f"{damaged} damaged lines were"
        print(f"{path}: {lines} dropped", flush=True)
    kept = [line for line in kept if keep_until is None or line["step"] <= keep_until]
    fresh = "".join(json.dumps(line) + "\n" for line in kept).encode()
    if fresh == raw:
        return
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(fresh)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise WriteError(path, error) from error


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl."""
    return _parse(path.read_bytes())[0]


def _parse(raw: bytes) -> tuple[list[dict[str, Any]], int]:
    """The lines that are objects with a step, and how many others there were before the last."""
    lines, damaged = [], 0
    *texts, last = raw.split(b"\n")
    for text in [*texts, last]:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
        else:
            damaged += text is not last
    return lines, damaged


class TensorBoard:
    """Event files under `tensorboard/`."""

    def __init__(self, directory: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "config.log.tensorboard needs tensorboardX: pip install 'paperlab[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(directory))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A W&B run; its id is kept in the work directory, so that a resumed run goes on in the same curve."""

    def __init__(self, project: str, workdir: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("config.log.wandb needs wandb: pip install 'paperlab[wandb]'") from error
        identity = workdir / "wandb_id.txt"
        run_id = identity.read_text().strip() if identity.is_file() else None
        self._run = wandb.init(
            project=project, dir=str(workdir), config=config, name=workdir.name, id=run_id, resume="allow"
        )
        identity.write_text(self._run.id)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class Writers:
    """Every writer that the config asks for; nothing on processes other than 0."""

    def __init__(self, config: Any, workdir: Path, *, process: int, keep_until: int):
        self._all: list[Writer] = []
        if process == 0:
            self._all.append(JsonLines(workdir / "metrics.jsonl", keep_until=keep_until))
            if config.log.tensorboard:
                self._all.append(TensorBoard(workdir / "tensorboard"))
            if config.log.wandb:
                self._all.append(WandB(config.log.wandb, workdir, json.loads(config.to_json_best_effort())))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self._all:
            writer.write(step, metrics)

    def close(self) -> None:
        for writer in self._all:
            writer.close()

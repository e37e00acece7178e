"""Where metrics go: metrics.jsonl always, TensorBoard and W&B when asked. Process 0 writes."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

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
    """

    def __init__(self, path: Path, *, keep_until: int | None = None):
        truncate(path, keep_until)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def truncate(path: Path, keep_until: int | None) -> None:
    """Drops lines after step `keep_until` and lines that are no JSON, atomically."""
    if not path.is_file():
        return
    kept = [line for line in read(path) if keep_until is None or line["step"] <= keep_until]
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(part, path)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


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

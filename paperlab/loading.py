"""A finished (or running) run as objects: model, parameters, config, tokenizer, metrics; and `train`, to make one from Python."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paperlab import workdir as workdirs
from paperlab.checks import check_complete
from paperlab.config import resolve
from paperlab.discovery import find
from paperlab.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """What `paperlab.load` returns; `model.apply(params, tokens)` is all that is needed to use it."""

    workdir: Path
    config: ConfigDict
    task: Any
    model: Any
    params: Any
    step: int

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the run was trained with."""
        return self.task.tokenizer

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, `{"step": 10, "loss": ...}`; training and evaluation stand in lines of their own."""
        from paperlab.training.writers import read

        file = self.workdir / "metrics.jsonl"
        return read(file) if file.is_file() else []

    @cached_property
    def state(self) -> Any:
        """What the task carries besides, of the same step: statistics of batches and the like; {} where there is none."""
        from paperlab.training.checkpoint import restore_state

        return restore_state(self.workdir, step=self.step)[0]

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json says; empty while the run is under way. Raises ConfigError where the file is damaged."""
        file = self.workdir / "summary.json"
        if not file.is_file():
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}; the same command again writes it anew") from error


def train(config: ConfigDict, workdir: str | Path | None = None) -> Run:
    """Trains what `config` describes, as `python -m paperlab.run` does, and loads what came out.

    The same call again resumes, or only loads what is complete.

    Args:
      config: as `paperlab.config.load_experiment` gives it, with your changes.
      workdir: `runs/<slug>[-<variant>]-<8 hex digits>` if omitted.

    Raises:
      ConfigError: the config cannot be run, or the directory holds a run of another one.
    """
    from paperlab.devices import keep_compiled_programs
    from paperlab.training.loop import train as train_task

    keep_compiled_programs()
    config = resolve(config)
    if config.program:
        raise ConfigError(f"config.program={config.program!r} is no training run: python -m paperlab.run runs it")
    path = workdirs.default_path(config) if workdir is None else Path(workdir)
    with workdirs.entered(path, config, {}):
        task = find("tasks", config.task.name).make(config)
        train_task(config, path, task)
    return _open(path, config, task, None)


def load(workdir: str | Path, *, step: int | None = None) -> Run:
    """Loads the newest good checkpoint of a run, or the one of `step`; EMA weights where the run kept them.

    Raises:
      ConfigError: the directory holds no run or no checkpoint that can be read.
    """
    path = Path(workdir)
    config = workdirs.read_config(path)
    needed = {"task": {"name": ""}, "model": {"name": ""}, "data": {}, "mixers": {}}
    check_complete(config, needed, cure=f"{path / 'config.json'} is not as it was written; the run cannot be loaded")
    return _open(path, config, find("tasks", config.task.name).make(config), step)


def _open(path: Path, config: ConfigDict, task: Any, step: int | None) -> Run:
    from paperlab.training.checkpoint import restore_params

    params, found = restore_params(path, step=step)
    return Run(path, config, task, task.model, params, found)

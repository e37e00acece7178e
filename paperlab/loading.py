"""A finished (or running) run as objects: model, parameters, config, tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paperlab import workdir as workdirs
from paperlab.discovery import find


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


def load(workdir: str | Path, *, step: int | None = None) -> Run:
    """Loads the newest good checkpoint of a run, or the one of `step`; EMA weights where the run kept them.

    Raises:
      ConfigError: the directory holds no run or no checkpoint that can be read.
    """
    from paperlab.training.checkpoint import restore_params

    path = Path(workdir)
    config = workdirs.read_config(path)
    task = find("tasks", config.task.name).make(config)
    params, found = restore_params(path, step=step)
    return Run(path, config, task, task.model, params, found)

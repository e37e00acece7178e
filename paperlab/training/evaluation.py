"""Named evaluators: each a split with its own cadence; exact sums over batches and devices.

config.evaluators.<name> = {split, every, batches}: after every `every` steps (0: only at the end) over the first
`batches` batches (0: all); at the end of a run over the whole split. A metric m of evaluator e is reported as `e_m`,
with what the task derives.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import jax

from paperlab.errors import ConfigError
from paperlab.training import data
from paperlab.training.metrics import Sums, add
from paperlab.training.protocol import Task, derived
from paperlab.training.state import TrainState, evaluation_params


class GivenUpError(Exception):
    """An evaluation ended between two batches because the run was asked to stop; nothing of it is kept."""


def _never(count: int) -> bool:
    return False


class Evaluators:
    """The evaluators of a run, over one jitted `task.evaluate`.

    `run` and `everything` ask `stop(batches so far)` before every batch, and raise `GivenUpError` when told so.
    """

    def __init__(self, config: Any, task: Task, mesh: Any):
        self.config, self.task, self.mesh = config.evaluators, task, mesh
        self.traces = 0
        self._splits: dict[str, Any] = {}
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._evaluate = jax.jit(self._traced, out_shardings=replicated)

    def _traced(self, params: Any, state: Any, batch: Any) -> Any:
        self.traces += 1
        return self.task.evaluate(params, state, batch)

    def due(self, step: int) -> list[str]:
        """Names of those whose cadence hits this step."""
        return [name for name, one in self.config.items() if one.every and step % one.every == 0]

    def check_metric(self, metric: str, shapes: TrainState, batch: Any) -> None:
        """Raises ConfigError where no evaluator will ever report `config.checkpoint.best_metric`."""
        known = self.names(shapes, batch) if metric and self.config else set()
        if not known or metric in known:
            return
        near = get_close_matches(metric, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
        raise ConfigError(
            f"config.checkpoint.best_metric={metric!r}: no evaluator reports it; {hint} ('' keeps no best)"
        )

    def names(self, shapes: TrainState, batch: Any) -> set[str]:
        """The names that an evaluation will report, found by tracing it; empty where that cannot be told."""
        try:
            made = jax.eval_shape(self._evaluate, evaluation_params(shapes), shapes.state, batch)
            found = derived(self.task, dict.fromkeys(made, 1.0))
        except Exception:  # the split's own batches may have another form: the evaluation itself will tell
            return set()
        return {f"{name}_{metric}" for name in self.config for metric in found}

    def run(
        self, names: list[str], state: TrainState, *, whole: bool = False, stop: Callable[[int], bool] = _never
    ) -> dict[str, float]:
        """{"<name>_<metric>": value} of these evaluators."""
        found = {}
        for name in names:
            batches = 0 if whole else self.config[name].batches
            means = self._one(name, state, batches, stop)
            found.update({f"{name}_{metric}": value for metric, value in means.items()})
        return found

    def everything(self, state: TrainState, *, stop: Callable[[int], bool] = _never) -> dict[str, float]:
        """Every evaluator over the whole of its split."""
        return self.run(list(self.config), state, whole=True, stop=stop)

    def _one(self, name: str, state: TrainState, batches: int, stop: Callable[[int], bool]) -> dict[str, float]:
        split = self.config[name].split
        if split not in self._splits:
            self._splits[split] = data.open_split(self.task, split, self.mesh)
        dataset = self._splits[split]
        if not 0 < len(dataset) < 2**40:
            what = "is empty" if len(dataset) == 0 else "never ends"
            raise ConfigError(f"config.evaluators.{name}.split={split!r}: this split {what}")
        params, sums, waiting = evaluation_params(state), Sums(), None
        for count, batch in enumerate(data.global_batches(dataset, self.mesh, stop=batches or None)):
            if stop(count):
                raise GivenUpError(name)
            previous, waiting = waiting, self._evaluate(params, state.state, batch)
            if previous is not None:
                add(sums, jax.device_get(previous))
        add(sums, jax.device_get(waiting))
        return derived(self.task, {metric: t / w for metric, (t, w) in sums.items() if w})

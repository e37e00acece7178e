"""A training run taken apart, for benchmarks that time its pieces: config, task, set-up, batches, compiled step."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import jax

from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.training import data, setup
from paperlab.training.state import TrainState

# Sizes for --quick, of any language model.
TINY = {
    "model.width": 16,
    "model.depth": 1,
    "model.unroll": 1,
    "mixers.gla.short_conv": False,
    "data.sequence_length": 32,
    "data.batch_size": 2,
    "data.max_bytes": 200_000,
    "mesh.data": 1,
}


class Subject(NamedTuple):
    """What a run holds before its first step; `batches` are the first training batches, on the devices."""

    config: Any
    task: Any
    ready: setup.Setup
    batches: list[Any]

    def state(self) -> TrainState:
        """The state before step 0."""
        return setup.init_state(self.config, self.task, self.ready, self.batches[0])

    def compile(self) -> jax.stages.Compiled:
        """The trainer's own step, `(state, batch, key) -> (state, metrics)`; the state is donated."""
        return setup.compile_step(self.config, self.task, self.ready)

    def key(self) -> jax.Array:
        return jax.device_put(jax.random.key(self.config.seed), self.ready.placement.replicated)


def configured(reference: str, changes: Mapping[str, Any], *, quick: bool = False) -> Any:
    """The resolved config of an experiment with fields changed; `changes` are {dotted path: value}."""
    config = load_experiment(reference)
    with config.ignore_type():
        config.update_from_flattened_dict({**changes, **(TINY if quick else {})})
    return resolve(config)


def prepare(config: Any, batches: int = 8) -> Subject:
    """Sets a run up and reads its first `batches` training batches."""
    task = find("tasks", config.task.name).make(config)
    ready = setup.prepare(config, task)
    dataset = data.open_split(task, "train", ready.mesh)
    return Subject(config, task, ready, list(islice(data.global_batches(dataset, ready.mesh), batches)))


class Stepper:
    """Calls the compiled step of a subject again and again on its batches, as the loop does."""

    def __init__(self, subject: Subject):
        self.subject, self.compiled = subject, subject.compile()
        self.state, self.key, self.done = subject.state(), subject.key(), 0

    def run(self, steps: int) -> Any:
        """Takes so many steps; returns the metrics of the last, not waited for."""
        metrics = None
        for _ in range(steps):
            batch = self.subject.batches[self.done % len(self.subject.batches)]
            self.state, metrics = self.compiled(self.state, batch, self.key)
            self.done += 1
        return metrics

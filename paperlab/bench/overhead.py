"""What the trainer costs beside a training step written by hand, with the same mathematics and batches.

`by hand` is one jitted function in a bare `for` loop (plain.py). `step` is the trainer's compiled step in the same bare loop.
`whole loop` is the real `paperlab.training.loop.train` with its data, metrics, guard, progress and log, without evaluations and
saves; the other two take their turns inside its `on_step`. The losses of the first two must agree, or nothing is reported.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from paperlab.bench import plain
from paperlab.bench.record import Aim, Options, Row, number
from paperlab.bench.subject import Stepper, Subject, configured, prepare
from paperlab.bench.timing import Samples, ratio
from paperlab.training.loop import train

LABELS = ("by hand", "step", "whole loop")
STEPS, ROUNDS, TOLERANCE = 10, 25, 1e-4  # ten steps: one line of the log in every round
QUIET = {
    "train.checkpoint_every": 0,
    "evaluators.val.every": 0,
    "log.tensorboard": False,
    "log.wandb": "",
}


def rows(options: Options) -> Iterable[Row]:
    """One row: the default run."""
    steps, rounds = (3, 2) if options.quick else (STEPS, ROUNDS)
    config = configured(options.config, QUIET, quick=options.quick)
    subject = prepare(config, batches=steps)
    race = Race(subject, steps=steps, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        race.run(Path(folder))
    case = {"mixer": config.model.mixer, "width": config.model.width, "depth": config.model.depth, "steps": steps}
    numbers = {
        "step_over_hand": ratio(race.samples, "step", "by hand"),
        "loop_over_hand": ratio(race.samples, "whole loop", "by hand"),
        "step_over_hand_processor_time": ratio(race.processor, "step", "by hand"),
        "loop_over_hand_processor_time": ratio(race.processor, "whole loop", "by hand"),
        "largest_loss_difference": race.difference,
    }
    yield Row(case, race.samples, numbers)


class Spent(NamedTuple):
    """Seconds on the clock, and of all processors together: the second is what other programs change least."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Spent":
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.wall - other.wall, self.processor - other.processor)


class EndError(Exception):
    """The race is over: ends the trainer's loop from inside."""


class Race:
    """The trainer's loop with two others taking turns inside it; the first round of `steps` steps is a warm-up."""

    def __init__(self, subject: Subject, *, steps: int, rounds: int):
        self.subject, self.per_round, self.rounds = subject, steps, rounds
        self.samples: Samples = {label: [] for label in LABELS}
        self.processor: Samples = {label: [] for label in LABELS}
        self.stepper = Stepper(subject)
        transform = plain.transformation(subject.config)
        self.step = plain.make_step(subject.task.model, transform)
        self.params = subject.state().params
        self.moments = transform.init(self.params)
        self.difference = 0.0
        self.since = Spent.now()

    def run(self, workdir: Path) -> None:
        """Runs the trainer until enough rounds are taken."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                train(self.subject.config, workdir, self.subject.task, on_step=self.on_step)
        except EndError:
            return
        raise ValueError(f"overhead: config.train.steps={self.subject.config.train.steps} end before the rounds do")

    def on_step(self, step: int, state: Any) -> None:
        """After every `steps` steps of the trainer: its time, then the others' turns."""
        if step % self.per_round:
            return
        jax.block_until_ready(state)
        spent = {"whole loop": Spent.now() - self.since}
        spent["by hand"], by_hand = _timed(self._by_hand)
        spent["step"], ours = _timed(lambda: self.stepper.run(self.per_round))
        if step == self.per_round:
            total, weight = (float(x) for x in ours["loss"])
            self.difference = same_loss(float(by_hand["loss"]), total / weight, step)
        else:
            for label, (wall, processor) in spent.items():
                self.samples[label].append(wall / self.per_round * 1e3)
                self.processor[label].append(processor / self.per_round * 1e3)
        if len(self.samples["step"]) == self.rounds:
            raise EndError
        self.since = Spent.now()

    def _by_hand(self) -> Any:
        found = None
        for batch in self.subject.batches:
            self.params, self.moments, found = self.step(self.params, self.moments, batch)
        return found


def _timed(call: Any) -> tuple[Spent, Any]:
    start = Spent.now()
    result = jax.block_until_ready(call())
    return Spent.now() - start, result


def same_loss(by_hand: float, ours: float, steps: int) -> float:
    """The relative difference of two losses after the same batches from the same start.

    Raises:
      ValueError: it is larger than rounding explains.
    """
    difference = abs(ours / by_hand - 1)
    if not difference < TOLERANCE:
        raise ValueError(
            f"overhead: after {steps} steps the loss is {ours:.6g}, by hand {by_hand:.6g}: these are not the same mathematics"
        )
    return difference


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)


AIMS = (
    Aim("the trainer's step over one written by hand", "<=", 1.0, "%", number("step_over_hand", _percent)),
    Aim("the trainer's whole loop over one written by hand", "<=", 2.0, "%", number("loop_over_hand", _percent)),
)

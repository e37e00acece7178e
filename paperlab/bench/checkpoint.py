"""The stall that a save adds to training, in the background and waited for.

Rounds of steps without a save take turns with rounds that hold one. The save is the trainer's own (digests, metadata, one
checkpoint kept), begun after the first step of a round. `stall_ms` is what it adds to the whole round until the last byte is
on the disk: the copy out of the device, and the processor time that writing takes from the steps beside it. `call_ms` is how long
`save` itself holds the loop.
"""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from paperlab.bench.record import Options, Row
from paperlab.bench.subject import Stepper, configured, prepare
from paperlab.bench.timing import difference, interleaved, median
from paperlab.training.checkpoint import Checkpoints
from paperlab.training.setup import local_bytes

SIZES: dict[str, dict[str, Any]] = {
    "default": {},
    "wide": {"model.width": 512, "model.depth": 2, "model.heads": 4, "model.unroll": 1, "data.sequence_length": 16},
}
STEPS, ROUNDS = 20, 7


def rows(options: Options) -> Iterable[Row]:
    """One row a size."""
    steps, rounds = (2, 2) if options.quick else (STEPS, ROUNDS)
    for name, changes in ({"default": {}} if options.quick else SIZES).items():
        subject = prepare(configured(options.config, {**changes, "checkpoint.keep": 1}, quick=options.quick))
        with tempfile.TemporaryDirectory() as folder:
            saver = Saver(Stepper(subject), Path(folder), subject.config, steps)
            calls = {
                "no save": lambda s=saver: s.round(None),
                "in the background": lambda s=saver: s.round(True),
                "waited for": lambda s=saver: s.round(False),
            }
            samples = interleaved(calls, rounds=rounds)
            saver.close()
        numbers = {
            "bytes": local_bytes(subject.ready.shapes),
            "stall_ms": difference(samples, "in the background", "no save"),
            "stall_waited_for_ms": difference(samples, "waited for", "no save"),
            "call_ms": median(saver.calls),
        }
        yield Row({"size": name, "steps_a_round": steps}, samples, numbers)


class Saver:
    """Rounds of steps with and without a save in them."""

    def __init__(self, stepper: Stepper, folder: Path, config: Any, steps: int):
        self.stepper, self.steps, self.calls = stepper, steps, list[float]()
        self.checkpoints = {}
        for background in (True, False):
            policy = config.checkpoint.copy_and_resolve_references()
            with policy.unlocked():
                policy.asynchronous = background
            self.checkpoints[background] = Checkpoints(folder / str(background), policy)

    def round(self, background: bool | None) -> None:
        """`steps` steps; with a save after the first of them unless `background` is None, and until it is on the disk."""
        self.stepper.run(1)
        jax.block_until_ready(self.stepper.state)
        if background is not None:
            start = time.perf_counter()
            self.checkpoints[background].save(self.stepper.done, self.stepper.state, {"metrics": {}})
            if background:
                self.calls.append((time.perf_counter() - start) * 1e3)
        self.stepper.run(self.steps - 1)
        jax.block_until_ready(self.stepper.state)
        if background is not None:
            self.checkpoints[background].wait()

    def close(self) -> None:
        for one in self.checkpoints.values():
            one.close()

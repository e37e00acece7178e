"""Share of a training step that is spent waiting for data, and what reading costs by itself.

The loop takes a batch, dispatches the step and reads the metrics of the step before, as the trainer does. `waiting` is the time
inside `next(batches)`, `step` the whole; `reading alone` is a batch with nothing else to do; `same batch` is the step without any
reading. The device computes while the host waits for data, so `added_share`, what reading adds to a step, is the smaller number
wherever the host is ahead of the device.
"""

import time
from collections.abc import Iterable
from itertools import islice, repeat
from typing import Any

import jax

from paperlab.bench.record import Aim, Options, Row, number
from paperlab.bench.subject import Stepper, configured, prepare
from paperlab.bench.timing import median
from paperlab.training import data

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "contiguous": {"data.order": "contiguous"},
    "long": {"data.sequence_length": 2048, "data.batch_size": 1},
}
STEPS, ROUNDS = 20, 5


def rows(options: Options) -> Iterable[Row]:
    """One row a way of reading."""
    steps, rounds = (4, 2) if options.quick else (STEPS, ROUNDS)
    for name, changes in ({"default": {}} if options.quick else CASES).items():
        subject = prepare(configured(options.config, changes, quick=options.quick))
        stepper, mesh = Stepper(subject), subject.ready.mesh
        dataset = data.open_split(subject.task, "train", mesh)
        waits, totals, alone, same = [], [], [], []
        for turn in range(-1, rounds):
            wait, total = _train(stepper, data.global_batches(dataset, mesh, start=0), steps)
            reading = _read(data.global_batches(dataset, mesh, start=0), steps)
            _, without = _train(stepper, repeat(subject.batches[0]), steps)
            if turn >= 0:
                waits.append(wait)
                totals.append(total)
                alone.append(reading)
                same.append(without)
        shares = [wait / total for wait, total in zip(waits, totals, strict=True)]
        added = [total / without - 1 for total, without in zip(totals, same, strict=True)]
        case = {
            "case": name,
            "order": subject.config.data.order,
            "batch": subject.config.data.batch_size,
            "length": subject.config.data.sequence_length,
        }
        samples = {"step": totals, "waiting": waits, "reading alone": alone, "same batch": same}
        yield Row(case, samples, {"waiting_share": median(shares), "added_share": median(added)})


def _train(stepper: Stepper, batches: Any, steps: int) -> tuple[float, float]:
    """Milliseconds a step inside `next(batches)`, and in all; the first batches fill the read-ahead and are not counted."""
    waited, before = 0.0, None
    for _ in islice(batches, 4):
        pass
    jax.block_until_ready(stepper.state)
    start = time.perf_counter()
    for _ in range(steps):
        since = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - since
        stepper.state, metrics = stepper.compiled(stepper.state, batch, stepper.key)
        if before is not None:
            jax.device_get(before)
        before = metrics
    jax.block_until_ready(before)
    return waited / steps * 1e3, (time.perf_counter() - start) / steps * 1e3


def _read(batches: Any, steps: int) -> float:
    for _ in islice(batches, 4):
        pass
    start = time.perf_counter()
    for batch in islice(batches, steps):
        jax.block_until_ready(batch)
    return (time.perf_counter() - start) / steps * 1e3


def _percent(share: float) -> float:
    return 100 * share


AIMS = (
    Aim(
        "share of the default step spent waiting for data",
        "<",
        1.0,
        "%",
        number("waiting_share", _percent, case="default"),
    ),
)

"""Training steps and forward passes a second, at the default size and at others.

One compiled step of the trainer, on batches that lie on the device: no data reading, no evaluation, no saving. Model FLOPs are 6 a
parameter and token; where the device's peak is known, `mfu` is the share of it. All sizes take turns in one process.
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax

from paperlab.bench.record import Aim, Options, Row, number
from paperlab.bench.subject import Stepper, Subject, configured, prepare
from paperlab.bench.timing import interleaved, median
from paperlab.training.loop import model_flops
from paperlab.training.peaks import peak_flops
from paperlab.training.state import evaluation_params

SIZES: dict[str, dict[str, Any]] = {
    "default": {},
    "long": {"data.sequence_length": 2048, "data.batch_size": 1},
    "wide": {"model.width": 256, "model.depth": 6, "model.heads": 4, "model.unroll": 1},
    "attention": {"model.mixer": "attention"},
}
STEPS, ROUNDS = 5, 10


def rows(options: Options) -> Iterable[Row]:
    """One row a size: a training step and a forward pass of the same batch."""
    sizes = {"default": {}} if options.quick else SIZES
    steps, rounds = (2, 2) if options.quick else (STEPS, ROUNDS)
    subjects = {name: prepare(configured(options.config, c, quick=options.quick)) for name, c in sizes.items()}
    steppers = {name: Stepper(subject) for name, subject in subjects.items()}
    forwards = {name: _forward(subject, steppers[name]) for name, subject in subjects.items()}
    calls = {}
    for name in sizes:
        calls[f"{name} step"] = partial(steppers[name].run, steps)
        calls[f"{name} forward"] = partial(forwards[name], steps)
    samples = interleaved(calls, rounds=rounds, per_call=steps)
    for name, subject in subjects.items():
        own = {label: samples[f"{name} {label}"] for label in ("step", "forward")}
        yield Row(_case(name, subject), own, _numbers(subject, steppers[name], own["step"]))


def _forward(subject: Subject, stepper: Stepper) -> Any:
    evaluate = jax.jit(subject.task.evaluate)

    def run(times: int) -> Any:
        found = None
        for i in range(times):
            batch = subject.batches[i % len(subject.batches)]
            found = evaluate(evaluation_params(stepper.state), stepper.state.state, batch)
        return found

    return run


def _case(name: str, subject: Subject) -> dict[str, Any]:
    model, data = subject.config.model, subject.config.data
    return {
        "size": name,
        "mixer": model.hybrid or model.mixer,
        "width": model.width,
        "depth": model.depth,
        "batch": data.batch_size,
        "length": data.sequence_length,
    }


def _numbers(subject: Subject, stepper: Stepper, milliseconds: Sequence[float]) -> dict[str, Any]:
    tokens = subject.task.tokens_per_batch
    flops = model_flops(subject.task, subject.ready.shapes.params) or 0.0
    seconds = median(milliseconds) / 1e3
    memory = stepper.compiled.memory_analysis()
    found = {
        "tokens_per_second": tokens / seconds,
        "model_gflops_per_second": flops / seconds / 1e9,
        "temporary_bytes": int(getattr(memory, "temp_size_in_bytes", 0)),
        "processor_ms": _processor_ms(stepper),
    }
    mesh = subject.ready.mesh
    peak = peak_flops(mesh.devices.flat[0])
    return {**found, "mfu": flops / seconds / (peak * mesh.size)} if peak else found


def _processor_ms(stepper: Stepper, steps: int = 5) -> float:
    """Time of all processors in a step, user and system: what other programs on the machine change least."""
    jax.block_until_ready(stepper.run(1))
    start = time.process_time()
    jax.block_until_ready(stepper.run(steps))
    return (time.process_time() - start) / steps * 1e3


AIMS = (
    Aim(
        "training at the default size (aim set for two CPU cores)",
        ">=",
        15_000,
        "tokens/s",
        number("tokens_per_second", size="default"),
    ),
)

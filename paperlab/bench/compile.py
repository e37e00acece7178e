"""Time to trace and compile the training step against depth: layers under one scan, and written out.

`stacked` is `config.model.unroll=1`, `unrolled` is as many as there are layers. Nothing is taken from the cache of compiled
programs. `..._step_ms` says what each of the two programs then takes for a step, which is what unrolling is for.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax

from paperlab.bench.record import Options, Row
from paperlab.bench.subject import Stepper, configured, prepare
from paperlab.bench.timing import interleaved, median, ratio

DEPTHS, ROUNDS = (2, 4, 8, 16), 3


def rows(options: Options) -> Iterable[Row]:
    """One row a depth."""
    depths, rounds = ((2,), 1) if options.quick else (DEPTHS, ROUNDS)
    for depth in depths:
        forms = {"stacked": 1, "unrolled": depth}
        subjects = {name: prepare(_config(options, depth, unroll), batches=4) for name, unroll in forms.items()}
        with _without_cache():
            compiles: dict[str, Callable[[], Any]] = {name: subject.compile for name, subject in subjects.items()}
            samples = interleaved(compiles, rounds=rounds, warmup=0)
        steppers = {name: Stepper(subject) for name, subject in subjects.items()}
        steps = interleaved({name: partial(s.run, 2) for name, s in steppers.items()}, rounds=rounds, per_call=2)
        numbers = {
            "compile_ratio": ratio(samples, "unrolled", "stacked"),
            "step_ratio": ratio(steps, "unrolled", "stacked"),
            **{f"{name}_step_ms": median(values) for name, values in steps.items()},
        }
        yield Row({"depth": depth, "width": subjects["stacked"].config.model.width}, samples, numbers)


def _config(options: Options, depth: int, unroll: int) -> Any:
    config = configured(options.config, {}, quick=options.quick).copy_and_resolve_references()
    with config.unlocked():
        config.model.depth, config.model.unroll = depth, unroll
    return config


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)

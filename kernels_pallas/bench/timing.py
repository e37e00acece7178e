"""Interleaved timing on a device that works behind the caller's back.

A sample is a number of calls one after another, waited for once, divided by that number: so many that the sample takes some
milliseconds and what it costs to ask for a call stays small. Calls go round several sets of inputs, 200 MB or more together, so
that none is found in a cache.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Call = Callable[[int], Any]  # of the number of the input set
Samples = dict[str, list[float]]

OUT_OF_CACHE = 200e6  # bytes; the second-level cache of an H100 holds 50 MB
SAMPLE_MS = 5.0
MOST_CALLS = 50


class Plan(NamedTuple):
    """rounds: samples of every call; seconds: at most, for all samples of one call, but 3 samples in any case."""

    rounds: int = 25
    seconds: float = 4.0


QUICK = Plan(rounds=2, seconds=0.2)


def interleaved(calls: Mapping[str, Call], plan: Plan, wait: Callable[[Any], Any]) -> Samples:
    """Milliseconds of one call, a sample a round, of each of `calls`; round by round, one call after the other.

    Args:
      calls: {label: call}, compiled and warm.
      wait: waits for what a call returned.
    """
    turns = {label: _turns(call, plan, wait) for label, call in calls.items()}
    samples: Samples = {label: [] for label in calls}
    for turn in range(max((rounds for _, rounds in turns.values()), default=0)):
        for label, (count, rounds) in turns.items():
            if turn < rounds:
                samples[label].append(sample(calls[label], count, wait))
    return samples


def sample(call: Call, count: int, wait: Callable[[Any], Any]) -> float:
    """Milliseconds of a call, out of `count` in a row."""
    start = time.perf_counter()
    result = None
    for number in range(count):
        result = call(number)
    wait(result)
    return (time.perf_counter() - start) * 1e3 / count


def _turns(call: Call, plan: Plan, wait: Callable[[Any], Any]) -> tuple[int, int]:
    """(calls in a sample, samples), from a first one that is thrown away."""
    sample(call, 1, wait)
    once = max(min(sample(call, 1, wait), sample(call, 2, wait)), 1e-4)
    count = max(1, min(MOST_CALLS, round(SAMPLE_MS / once)))
    fit = int(plan.seconds * 1e3 / (once * count))
    return count, max(min(3, plan.rounds), min(plan.rounds, fit))


def sets(size: float) -> int:
    """How many input sets of so many bytes are too much for a cache together; 1 to 8."""
    return max(1, min(8, -(-int(OUT_OF_CACHE) // max(1, int(size)))))


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The 25th and 75th percentile."""
    if len(values) < 2:
        return float(values[0]), float(values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return float(low), float(high)

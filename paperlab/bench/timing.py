"""Interleaved timing: a, b, c, c, b, a, a, b ..., each waited for, so that what slows the machine slows all of them alike, and no
call always runs in the caches that the same other one has left.

The first turns warm caches and compile; they are not counted. Medians and quartiles are reported; a ratio is the median of
the ratios of single rounds, whose two parts lie next to each other in time.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Samples = dict[str, list[float]]


def interleaved(calls: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1, per_call: int = 1) -> Samples:
    """Milliseconds of every call of each of `calls`, in the order of the rounds; every other round runs backwards.

    Args:
      calls: {label: function without arguments}; what it returns is waited for (`jax.block_until_ready`).
      rounds: counted rounds, >= 1.
      warmup: rounds before them that are not counted.
      per_call: how often a call does the thing inside itself; times are divided by it.

    Raises:
      ValueError: no calls or no rounds.
    """
    if not calls or rounds < 1 or warmup < 0:
        raise ValueError(f"interleaved: needs calls and rounds >= 1, got {len(calls)} calls and rounds={rounds}")
    samples: Samples = {label: [] for label in calls}
    order = list(calls)
    for turn in range(-warmup, rounds):
        for label in order if turn % 2 == 0 else order[::-1]:
            milliseconds = timed(calls[label]) / per_call
            if turn >= 0:
                samples[label].append(milliseconds)
    return samples


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds until the result of `call()` is there."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return (time.perf_counter() - start) * 1e3


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The 25th and 75th percentile, between the values where they fall between two."""
    if len(values) < 2:
        return float(values[0]), float(values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return float(low), float(high)


def ratio(samples: Samples, label: str, base: str) -> float:
    """Median over the rounds of label / base."""
    return median([a / b for a, b in zip(samples[label], samples[base], strict=True)])


def difference(samples: Samples, label: str, base: str) -> float:
    """Median over the rounds of label - base, in milliseconds."""
    return median([a - b for a, b in zip(samples[label], samples[base], strict=True)])

"""Every implementation of the linear recurrences against length, width and pass, and what `impl="auto"` makes of it.

Rows: `op` linear (real), complex (two planes) and block/blocks (2 x 2) on [B, T, D]; "forward", or "both": the value and all
gradients of a random linear function of the states. `copy` copies as many bytes as the pass must read and write, in the same round:
the ratio to it says how far from the memory's speed the best implementation is. `--tune` writes what was fastest to
paperlab/recurrence/tuned.json for this kind of device.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from paperlab.bench.record import Aim, Options, Row
from paperlab.bench.timing import Samples, interleaved, median
from paperlab.recurrence import choice
from paperlab.recurrence.block import block_scan
from paperlab.recurrence.linear import complex_scan, linear_scan
from paperlab.workdir import write_atomically

LENGTHS, WIDTHS = (64, 256, 1024, 4096, 16384), (64, 256, 1024)
IMPLS = ("sequential", "in_place", "associative", "chunked")
# Numbers of a coefficient and of a state, for each step and channel.
SIZES = {"linear": (1, 1), "complex": (2, 2), "block/blocks": (4, 2)}
# More rows: what users have, a batch before the time axis.
BATCHED = [("linear", 8, T, D) for T in (256, 1024) for D in (64, 256)]
CLOSE = 1.2  # two runs differ by as much: what is no slower than this beside the best stays what it usually is
MOST = 2**24  # coefficients of a row: more would measure the allocator
TUNED = Path(choice.__file__).with_name("tuned.json")


def rows(options: Options) -> Iterable[Row]:
    """One row a recurrence, batch, length, width and pass."""
    cases = [(op, 1, T, D) for op in SIZES for D in WIDTHS for T in LENGTHS if T * D * SIZES[op][0] <= MOST] + BATCHED
    if options.quick:
        cases = [(op, 1, 64, 64) for op in SIZES]
    found = []
    for case in cases:
        for which in ("forward", "both"):
            found.append(_row(*case, which, options.quick))
            yield found[-1]
    if options.tune:
        write_table(found)


def traffic(op: str, which: str) -> int:
    """Numbers that must be read and written for each step and channel: A, b -> h; then A, h, g -> dA, db."""
    coefficient, state = SIZES[op]
    forward = coefficient + 2 * state
    return forward if which == "forward" else forward + 2 * coefficient + 3 * state


def _row(op: str, B: int, T: int, D: int, which: str, quick: bool) -> Row:
    chosen = choice.choose(op, T, _width(op, B, D), which)
    calls = {impl: _call(op, B, T, D, which, impl) for impl in IMPLS}
    moved = traffic(op, which) * B * T * D
    calls["copy"] = _copy(moved // 2)
    once = interleaved(calls, rounds=1, warmup=1)
    rounds = 2 if quick else max(5, min(40, int(1000 / max(sum(map(median, once.values())), 1e-3))))
    samples = interleaved(calls, rounds=rounds, warmup=0)
    times = {label: median(values) for label, values in samples.items() if label != "copy"}
    best = min(times, key=lambda label: times[label])
    numbers = {
        "best": best,
        "auto": chosen,
        "ratio_auto_to_best": times[chosen] / times[best],
        "ratio_best_to_copy": _ratio(samples, best),
        "gigabytes_per_second": moved * 4 / times[best] / 1e6,
    }
    return Row({"op": op, "B": B, "T": T, "D": D, "dtype": "float32", "pass": which}, samples, numbers)


def _ratio(samples: Samples, label: str) -> float:
    return median([a / b for a, b in zip(samples[label], samples["copy"], strict=True)])


def _call(op: str, B: int, T: int, D: int, which: str, impl: str) -> Callable[[], Any]:
    keys = iter(jax.random.split(jax.random.key(0), 6))

    def planes(low: float, *inner: int) -> Any:
        count = 2 if op == "complex" else 1
        drawn = [jax.random.uniform(next(keys), (B, T, *inner, D), jnp.float32, low, 0.7) for _ in range(count)]
        return tuple(drawn) if op == "complex" else drawn[0]

    a, b, weight = planes(0.1), planes(-0.7), planes(-0.7)
    scan: Callable[..., Any] = complex_scan if op == "complex" else linear_scan
    if op == "block/blocks":
        a, b, weight, scan = planes(-0.5, 2, 2), planes(-0.7, 2), planes(-0.7, 2), block_scan

    def forward(a: Any, b: Any, weight: Any) -> Any:
        return scan(a, b, impl=impl)[0]

    def both(a: Any, b: Any, weight: Any) -> Any:
        h, back = jax.vjp(lambda a, b: scan(a, b, impl=impl)[0], a, b)
        return h, back(weight)

    compiled = jax.jit(forward if which == "forward" else both)
    return lambda: compiled(a, b, weight)


def _copy(numbers: int) -> Callable[[], Any]:
    """Reads and writes `numbers` of float32; adding one keeps the compiler from aliasing."""
    x = jnp.ones((numbers,), jnp.float32)
    compiled = jax.jit(lambda x: x + 1)
    return lambda: compiled(x)


def write_table(found: Iterable[Row]) -> None:
    """Puts what is fastest in every row, or the usual one where that is about as fast, in the table of this kind of device."""
    table = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}
    entries = [_entry(row) for row in found]
    table[choice.kind()] = entries
    write_atomically(TUNED, json.dumps(table, indent=1) + "\n")


def _entry(row: Row) -> dict[str, Any]:
    case = row.case
    times = {impl: median(row.samples[impl]) for impl in IMPLS}
    usual = choice.UNTUNED if choice.kind() == "cpu" else choice.UNTUNED_ELSEWHERE
    impl = usual if times[usual] <= CLOSE * min(times.values()) else min(times, key=lambda impl: times[impl])
    width = _width(case["op"], case["B"], case["D"])
    return {"op": case["op"], "T": case["T"], "width": width, "pass": case["pass"], "impl": impl}


def _width(op: str, B: int, D: int) -> int:
    """Numbers of one step (of one plane where there are two), as `choose` is asked with."""
    return B * D * (2 if op == "block/blocks" else 1)


def _worst_auto(rows: Any) -> float | None:
    """The largest ratio of auto to the best, over the rows that take a millisecond or more."""
    ratios = [row.numbers["ratio_auto_to_best"] for row in rows if median(row.samples[row.numbers["best"]]) >= 1.0]
    return max(ratios, default=None)


AIMS = (Aim("auto beside the best implementation, worst row of 1 ms or more", "<=", 1.05, "ratio", _worst_auto),)

"""Every implementation of the linear recurrences against length, width and pass, and what `impl="auto"` makes of it.

Rows: `op` linear (real, [T, D]) and complex (two planes); "forward", or "both": the value and all gradients of a random linear
function of the states. `copy` copies as many bytes as the pass must read and write, in the same round: the ratio to it says how far
from the memory's speed the best implementation is. `--tune` writes what was fastest to paperlab/recurrence/tuned.json for this kind
of device.
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
from paperlab.recurrence.linear import complex_scan, linear_scan
from paperlab.workdir import write_atomically

LENGTHS, WIDTHS = (64, 256, 1024, 4096, 16384), (64, 256, 1024)
QUICK_LENGTHS, QUICK_WIDTHS = (64,), (64,)
PLANES = {"linear": 1, "complex": 2}
# Arrays read and written, for each number of the state: a, b -> h; forward once more, then a, h, g -> da, db.
TRAFFIC = {"forward": 3, "both": 8}
TUNED = Path(choice.__file__).with_name("tuned.json")


def rows(options: Options) -> Iterable[Row]:
    """One row a recurrence, length, width and pass."""
    lengths, widths = (QUICK_LENGTHS, QUICK_WIDTHS) if options.quick else (LENGTHS, WIDTHS)
    found = []
    for op in PLANES:
        for D in widths:
            for T in lengths:
                for which in TRAFFIC:
                    found.append(_row(op, T, D, which, options.quick))
                    yield found[-1]
    if options.tune:
        write_table(found)


def _row(op: str, T: int, D: int, which: str, quick: bool) -> Row:
    chosen = choice.choose(op, T, D, jnp.dtype("float32"))
    calls = {impl: _call(op, T, D, which, impl) for impl in ("sequential", "associative", "chunked")}
    calls["copy"] = _copy(PLANES[op] * TRAFFIC[which] * T * D // 2)
    once = interleaved(calls, rounds=1, warmup=1)
    rounds = 2 if quick else max(5, min(50, int(1500 / max(sum(map(median, once.values())), 1e-3))))
    samples = interleaved(calls, rounds=rounds, warmup=0)
    times = {label: median(values) for label, values in samples.items() if label != "copy"}
    best = min(times, key=lambda label: times[label])
    numbers = {
        "best": best,
        "auto": chosen,
        "ratio_auto_to_best": times[chosen] / times[best],
        "ratio_best_to_copy": _ratio(samples, best),
        "gigabytes_per_second": PLANES[op] * TRAFFIC[which] * T * D * 4 / times[best] / 1e6,
    }
    return Row({"op": op, "T": T, "D": D, "dtype": "float32", "pass": which}, samples, numbers)


def _ratio(samples: Samples, label: str) -> float:
    return median([a / b for a, b in zip(samples[label], samples["copy"], strict=True)])


def _call(op: str, T: int, D: int, which: str, impl: str) -> Callable[[], Any]:
    keys = iter(jax.random.split(jax.random.key(0), 6))

    def planes(low: float) -> Any:
        drawn = [jax.random.uniform(next(keys), (T, D), jnp.float32, low, 0.7) for _ in range(PLANES[op])]
        return drawn[0] if len(drawn) == 1 else tuple(drawn)

    a, b, weight = planes(0.1), planes(-0.7), planes(-0.7)
    scan = linear_scan if op == "linear" else complex_scan

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
    """Puts the fastest implementation of every row in the table of this kind of device."""
    table = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}
    entries = [{**row.case, "impl": row.numbers["best"]} for row in found]
    table[choice.kind()] = entries
    write_atomically(TUNED, json.dumps(table, indent=1) + "\n")


def _worst_auto(rows: Any) -> float | None:
    """The largest ratio of auto to the best, over the rows that take a millisecond or more."""
    ratios = [row.numbers["ratio_auto_to_best"] for row in rows if median(row.samples[row.numbers["best"]]) >= 1.0]
    return max(ratios, default=None)


AIMS = (Aim("auto beside the best implementation, worst row of 1 ms or more", "<=", 1.05, "ratio", _worst_auto),)

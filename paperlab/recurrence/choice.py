"""Which implementation `impl="auto"` means: the fastest that was measured on this kind of device, at the nearest length and width.

The table is tuned.json, which `python -m paperlab.bench recurrence --tune` writes. What it does not hold (another device, another
recurrence) follows its nearest relative: on a CPU step by step (in place where the recurrence is linear); elsewhere, not measured,
the associative one, since there a step that waits costs more than the work of a tree.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from math import log2
from pathlib import Path
from typing import Any

import jax

UNTUNED, UNTUNED_ELSEWHERE = "in_place", "associative"  # on a CPU, and on any other device
TABLE = Path(__file__).with_name("tuned.json")


def choose(op: str, T: int, width: int, which: str = "both") -> str:
    """The implementation for a recurrence `op` of T steps over `width` numbers.

    Args:
      which: "forward" or "both" (with gradients).
    """
    rows = [row for row in table().get(kind(), ()) if row["op"] == op and row["pass"] == which]
    if not rows:
        step_by_step = "sequential" if op == "newton" else UNTUNED
        return step_by_step if jax.default_backend() == "cpu" else UNTUNED_ELSEWHERE

    def distance(row: dict[str, Any]) -> float:
        return abs(log2(row["T"] / T)) + abs(log2(row["width"] / max(width, 1)))

    return str(min(rows, key=distance)["impl"])


def fastest(op: str, T: int, width: int, run: Callable[[str, Any, Any], Any], arrays: Any, ids: Any) -> Any:
    """`run(impl, arrays, ids)` by what is fastest for what is asked: the value alone, or the value and its gradient.

    arrays: a tree of floating arrays, which have gradients; ids: integers or None, which have none.
    """
    forward, both = choose(op, T, width, "forward"), choose(op, T, width, "both")
    if forward == both:
        return run(both, arrays, ids)

    def begun(arrays: Any, ids: Any) -> tuple[Any, Any]:
        return jax.vjp(lambda arrays: run(both, arrays, ids), arrays)

    value = jax.custom_vjp(partial(run, forward))
    value.defvjp(begun, lambda back, cotangents: (*back(cotangents), None))
    return value(arrays, ids)


def kind() -> str:
    """The kind of device that a measurement holds for."""
    device = jax.devices()[0]
    return "cpu" if device.platform == "cpu" else device.device_kind


@cache
def table() -> dict[str, list[dict[str, Any]]]:
    """{kind of device: [{"op", "T", "width", "pass", "impl"}]}, empty where nothing was measured."""
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}

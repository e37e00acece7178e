"""Block sizes of the kernels: measured ones from tuned.json, by kind of device and nearest case, else an operation's defaults.

tuned.json: {kind of device: {operation: [{"case": {sizes, "dtype", "pass"}, "config": {field: value}}]}}; written by
`python -m kernels_pallas.tune`.
"""

import json
from functools import cache
from math import log2
from pathlib import Path
from typing import Any

import jax

TABLE = Path(__file__).with_name("tuned.json")


def tuned(op: str, case: dict[str, Any], default: Any) -> Any:
    """The measured configuration nearest to `case`, of the type of `default` (a NamedTuple); `default` where none was measured.

    Near is the sum of |log2| of the ratios of sizes; another dtype counts as a factor of 8, another pass as a factor of 2.
    """
    rows = table().get(jax.devices()[0].device_kind, {}).get(op, [])
    rows = [row for row in rows if set(row["config"]) == set(default._fields)]
    if not rows:
        return default
    nearest = min(rows, key=lambda row: _distance(row["case"], case))
    return type(default)(**nearest["config"])


@cache
def table() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What tuned.json holds; empty where nothing was measured."""
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}


def _distance(row: dict[str, Any], case: dict[str, Any]) -> float:
    total = 0.0
    for name, value in case.items():
        other = row.get(name)
        if isinstance(value, int) and isinstance(other, int) and value > 0 and other > 0:
            total += abs(log2(value / other))
        elif name == "dtype" and other != value:
            total += 3
        elif name == "pass" and other != value:
            total += 1
    return total

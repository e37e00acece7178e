"""summary.json: what came out of a run, beside what it should be compared with."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paperlab.provenance import versions
from paperlab.workdir import write_atomically


def environment() -> dict[str, Any]:
    """Devices and versions."""
    devices = jax.devices()
    return {
        "devices": {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()},
        "versions": versions(),
    }


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays as numbers or lists, NaN and infinities as null, the rest as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_summary(workdir: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Writes summary.json on process 0 and returns what was written."""
    summary = plain(summary)
    if jax.process_index() == 0:
        write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary

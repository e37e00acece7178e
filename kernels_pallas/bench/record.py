"""The file of a benchmark, as paperlab.report reads it, and its table in the terminal.

{"title", "date", "commit", "dirty", "device", "machine", "versions", "ceilings", "aims": [],
 "rows": [{"bench", "case", "ms": {label: median}, "spread": {label: [q25, q75]}, "rounds", "errors": {label: error | null},
           "refused": {label: reason}, "rounds_of": {label: n}, "ratio_to": {label: ours / theirs}, further numbers}]}
"""

import datetime
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from kernels_pallas.bench import device

Row = dict[str, Any]


def document(title: str, ceilings: dict[str, float], rows: list[Row]) -> dict[str, Any]:
    """What is written."""
    where = device.described()
    return {
        "title": title,
        "date": datetime.date.today().isoformat(),
        **where,
        "ceilings": ceilings,
        "rows": rows,
        "aims": [],
    }


def write(file: Path, found: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(json.dumps(rounded(found), indent=1, allow_nan=False) + "\n")
    os.chmod(name, 0o644)
    os.replace(name, file)


def read_rows(file: Path) -> list[Row]:
    """The rows of a file that this device wrote; none where there is no such file.

    Raises:
      ValueError: another device wrote it.
    """
    if not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["device"] != device.kind():
        raise ValueError(f"{file} was measured on {found['device']}, here is {device.kind()}: name another file")
    return found["rows"]


def rounded(value: Any) -> Any:
    """Six significant digits are more than a measurement has; what JSON cannot hold becomes null."""
    if isinstance(value, dict):
        return {str(name): rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def case_text(case: dict[str, Any]) -> str:
    """A case in one line."""
    return ", ".join(f"{name} {value}" for name, value in case.items())


def lines(row: Row) -> list[str]:
    """A row for the terminal: times with their errors and ratios to the first, then who does not take part."""
    found = [f"{row['bench']}: {case_text(row['case'])}"]
    floors = [f"{name} {row[name]:.3g} ms" for name in ("floor_ms", "serial_ms") if row.get(name) is not None]
    found += [f"  {', '.join(floors)}"] if floors else []
    first = next(iter(row["ms"].values()), None)
    for label, value in row["ms"].items():
        error = row["errors"].get(label)
        checked = "not checked" if error is None else f"error {error:.1e}"
        found.append(f"  {label:<44} {value:10.4g} ms {value / first if first else 1:8.3g} x   {checked}")
    untimed = {label: e for label, e in row["errors"].items() if label not in row["ms"] and label not in row["refused"]}
    found += [f"  {label:<44} not timed              error {e:.1e}" for label, e in untimed.items() if e is not None]
    found += [f"  {label:<44} {reason}" for label, reason in row["refused"].items()]
    return found

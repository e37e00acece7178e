"""What a benchmark hands over, and the JSON document that is made of it.

{"title", "date", "commit", "dirty", "device", "machine", "versions",
 "rows": [{"bench", "case": {...}, "ms": {label: median}, "spread": {label: [q25, q75]}, "rounds", further numbers}],
 "aims": [{"bench", "what", "value", "aim", "comparison", "unit", "met"}]}
"""

import datetime
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperlab import provenance
from paperlab.bench.timing import Samples, median, quartiles
from paperlab.evidence import RELATIONS
from paperlab.workdir import write_atomically


@dataclass(frozen=True)
class Options:
    """What a benchmark is told: `quick` asks for the smallest sizes at which everything runs; `config` is the
    experiment whose default is measured; `tune` asks those that choose between implementations to keep what they found."""

    quick: bool = False
    config: str = "experiments/gla.py"
    tune: bool = False


@dataclass(frozen=True)
class Row:
    """One case.

    Args:
      case: what was measured, in JSON values: sizes, names.
      samples: {label: milliseconds, one a round}.
      numbers: further numbers of the case, such as tokens a second or bytes.
    """

    case: dict[str, Any]
    samples: Samples
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Aim:
    """What the rows of a benchmark should reach.

    Args:
      what: in words, with the size at which it is meant.
      comparison: "<", "<=", ">=" or ">".
      aim: the bound.
      unit: of value and bound.
      value: takes the rows; None where they do not hold it.
    """

    what: str
    comparison: str
    aim: float
    unit: str
    value: Callable[[Sequence[Row]], float | None]


def find_row(rows: Iterable[Row], **case: Any) -> Row | None:
    """The first row whose case holds these values."""
    return next((row for row in rows if case.items() <= row.case.items()), None)


def number(name: str, of: Callable[[float], float] = float, **case: Any) -> Callable[[Sequence[Row]], float | None]:
    """The value of an aim: the number `name`, or else the median of the samples `name`, of the row with this case."""

    def value(rows: Sequence[Row]) -> float | None:
        row = find_row(rows, **case)
        if row is None:
            return None
        return of(row.numbers[name] if name in row.numbers else median(row.samples[name]))

    return value


def row_json(bench: str, row: Row) -> dict[str, Any]:
    """A row as it is recorded."""
    return {
        "bench": bench,
        "case": row.case,
        "ms": {label: _short(median(values)) for label, values in row.samples.items()},
        "spread": {label: [_short(q) for q in quartiles(values)] for label, values in row.samples.items()},
        "rounds": max((len(values) for values in row.samples.values()), default=0),
        **{name: _short(value) for name, value in row.numbers.items()},
    }


def aim_json(bench: str, aim: Aim, rows: Sequence[Row]) -> dict[str, Any] | None:
    """An aim with what became of it; None where the rows do not tell."""
    value = aim.value(rows)
    if value is None:
        return None
    met = bool(RELATIONS[aim.comparison](value, aim.aim))
    return {
        "bench": bench,
        "what": aim.what,
        "value": _short(value),
        "aim": aim.aim,
        "comparison": aim.comparison,
        "unit": aim.unit,
        "met": met,
    }


def document(title: str, rows: list[dict[str, Any]], aims: list[dict[str, Any]], version: tuple[str, bool]) -> dict:
    """The document; `version` is (commit, dirty) of the code when it was loaded."""
    commit, dirty = version
    return {
        "title": title,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "device": provenance.device(),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "rows": rows,
        "aims": aims,
    }


def write(file: Path, found: dict[str, Any]) -> None:
    """Writes a document, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(found, indent=1) + "\n")


def _short(value: Any) -> Any:
    """Six significant digits are more than a measurement has; what JSON cannot hold becomes null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value

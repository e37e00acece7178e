"""What a claim is: a falsifiable sentence of a paper, scaled down, with its baseline and a threshold set beforehand.

A paper's `claims.py` lists its claims; `python -m paperlab.claims SLUG` runs and records them, failed ones too.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RELATIONS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt}


@dataclass(frozen=True)
class Threshold:
    """`value <= number` or another relation, or the same with `number` times the baseline.

    Args:
      relation: "<", "<=", ">=" or ">".
      number: the bound.
      of_baseline: the bound is `number * baseline`.
    """

    relation: str
    number: float
    of_baseline: bool = False

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ValueError(f"relation {self.relation!r}: use one of {', '.join(RELATIONS)}")

    def holds(self, value: float, baseline: float | None) -> bool:
        """Whether `value` meets the threshold; a NaN never does."""
        if self.of_baseline and baseline is None:
            raise ValueError("a threshold in terms of the baseline needs a baseline")
        bound = self.number * baseline if self.of_baseline and baseline is not None else self.number
        return bool(RELATIONS[self.relation](value, bound))

    def __str__(self) -> str:
        return f"{self.relation} {self.number:g}" + (" x baseline" if self.of_baseline else "")


@dataclass(frozen=True)
class Outcome:
    """What running a claim found.

    Args:
      value: the number held against the threshold; for several seeds their mean unless the statement says otherwise.
      baseline: what it is compared with, or None.
      per_seed: one entry a seed, where there are seeds.
      details: anything a reader would ask for next (JSON).
    """

    value: float
    baseline: float | None = None
    per_seed: list[Any] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


class Laboratory:
    """What a claim's `run` gets: the folder for plots, and results shared between the claims of one call."""

    def __init__(self, plots: Path):
        self.plots = plots
        self._shared: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()` the first time, its result afterwards: several claims may look at the same trained models."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]


@dataclass(frozen=True)
class Claim:
    """One falsifiable sentence.

    Args:
      id: short and stable, unique in the paper.
      statement: what is claimed, in words, with the scale at which it is tried.
      source: where the paper says it.
      run: computes the Outcome.
      threshold: when it counts as reproduced; set before it is run.
      device: a device kind that it needs (part of its name, such as "H100"), or "" for any.
    """

    id: str
    statement: str
    source: str
    run: Callable[[Laboratory], Outcome]
    threshold: Threshold
    device: str = ""

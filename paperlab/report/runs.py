"""Work directories as they are: config, what was asked, curves, summary, incidents, pictures, checkpoints."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paperlab.report import reading
from paperlab.report.numbers import float_of

MARKS = ("config.json", "metrics.jsonl", "summary.json", "overrides.json", "checkpoints")
PICTURES = {".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp"}
NOT_SHOWN = {"parameters.txt", "wandb_id.txt"}
CLOSED = {"checkpoints", "tensorboard", "profile", "wandb"}
DEEPEST = 4
BEYOND_STEPS = 2**53

Series = tuple[np.ndarray, np.ndarray]
"""(steps, values), float64, sorted by step; NaN where a value was not finite."""


@dataclass
class Run:
    """One work directory. Everything may be missing; `problems` says what is damaged."""

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    invocations: list[dict[str, Any]] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def option(self, path: str) -> Any:
        """The value at a dotted path of the config; None where there is none."""
        value: Any = self.config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def slug(self) -> str:
        return str(self.option("slug") or "")

    @property
    def variant(self) -> str:
        return str(self.option("variant") or "")

    @property
    def logged(self) -> float | None:
        """The last step of which something is written in metrics.jsonl."""
        return max((float(steps[-1]) for steps, _ in self.series.values() if len(steps)), default=None)

    @property
    def steps(self) -> float | None:
        """How far it came."""
        known = [value for value in (float_of(self.summary.get("steps")), self.logged) if value is not None]
        return max([*known, *map(float, self.checkpoints[-1:])], default=None)

    @property
    def happened(self) -> tuple[float, ...]:
        """The steps of its incidents."""
        steps = [float_of(line.get("step")) for line in self.incidents]
        return tuple(step for step in steps if step is not None)

    @property
    def status(self) -> str:
        """complete, interrupted or what else the summary says; "unfinished" where it is older than the metrics or absent."""
        told = self.summary.get("status")
        if not isinstance(told, str) or not told:
            return "complete" if self.summary else "unfinished" if self.config else "damaged"
        at = float_of(self.summary.get("steps"))
        return "unfinished" if at is not None and (self.logged or 0) > at else told

    @property
    def headline(self) -> tuple[str, float | None]:
        """(name, value) of the metric by which checkpoints are judged; else of a loss."""
        names = [self.option("checkpoint.best_metric"), "val_loss", "loss"]
        names += sorted(name for name in (*self.summary, *self.series) if name.endswith("_loss"))
        for name in names:
            if isinstance(name, str) and (value := self.last(name)) is not None:
                return name, value
        return "", None

    def last(self, name: str) -> float | None:
        """The final value of a metric: the summary's, else the last one of its curve."""
        train = self.summary.get("train")
        for told in (self.summary, train if isinstance(train, dict) else {}):
            if self.status != "unfinished" and (value := float_of(told.get(name))) is not None:
                return value
        values = self.series[name][1] if name in self.series else np.zeros(0)
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None

    def baselines(self) -> dict[str, float]:
        """What the headline metric is to be compared with: {name: value}, from the summary."""
        told, name = self.summary.get("baselines"), self.headline[0]
        if not isinstance(told, dict) or not name:
            return {}
        for measure in (name, name.partition("_")[2]):
            found = {k.removesuffix(f"_{measure}"): float_of(v) for k, v in told.items() if k.endswith(f"_{measure}")}
            if measure and found:
                return {key: value for key, value in found.items() if value is not None}
        return {}


def collect(roots: Iterable[Path]) -> list[Run]:
    """Every run at or below the given folders, by path; each is read once."""
    paths: dict[Path, Path] = {}
    for path in (path for root in roots for path in find(root)):
        paths.setdefault(path.resolve(), path)
    runs = [read(path) for path in paths.values()]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = f"{run.path.resolve().parent.name}/{run.name}"
    return runs


def find(root: Path, depth: int = 0) -> list[Path]:
    """The work directories at or below a folder."""
    if any((root / mark).exists() or (root / mark).is_symlink() for mark in MARKS):
        return [root]
    if depth == DEEPEST:
        return []
    inside = [path for path in reading.listed(root) if reading.is_folder(path) and not path.is_symlink()]
    return [run for path in inside if path.name[0] != "." for run in find(path, depth + 1)]


def read(path: Path) -> Run:
    """One work directory, however damaged."""
    run = Run(path, path.resolve().name)
    run.config, problem = reading.read_object(path / "config.json")
    run.problems.append(problem or ("" if run.config else "there is no config.json"))
    run.summary, problem = reading.read_object(path / "summary.json")
    run.problems.append(problem)
    history, problem = reading.read_json(path / "overrides.json")
    run.problems.append(problem)
    run.invocations = [item for item in history if isinstance(item, dict)] if isinstance(history, list) else []
    lines, problem = reading.read_lines(path / "metrics.jsonl")
    run.problems.append(problem)
    run.series = series_of(lines)
    run.incidents, problem = reading.read_lines(path / "incidents.jsonl")
    run.problems.append(problem)
    for entry in reading.listed(path / "checkpoints"):
        if entry.name.isdecimal():
            run.checkpoints.append(int(entry.name[:18]))
        elif entry.name.partition(".")[0].isdecimal() and "damaged" in entry.name:
            run.set_aside.append(entry.name)
    run.checkpoints.sort()
    _shown(run)
    run.problems = [problem for problem in run.problems if problem]
    return run


def _shown(run: Run) -> None:
    """Pictures and texts of a run, in its folder and the folders in it."""
    inside = [path for path in reading.listed(run.path) if path.name[0] != "." and not path.is_symlink()]
    for path in inside:
        if reading.is_folder(path) and path.name not in CLOSED:
            inside += [inner for inner in reading.listed(path) if inner.is_file() and inner.name[0] != "."]
        elif path.suffix.lower() in PICTURES:
            run.pictures.append(path)
        elif path.suffix == ".txt" and path.name not in NOT_SHOWN:
            run.texts.append(path)


def series_of(lines: list[dict[str, Any]]) -> dict[str, Series]:
    """{metric: (steps, values)}; where a step is written twice the later line counts, null and NaN are gaps."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        step = line.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < BEYOND_STEPS:
            continue
        for name, value in line.items():
            if name != "step" and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
                number = float_of(value)
                found.setdefault(name, {})[step] = np.nan if number is None else number
    return {name: _sorted(points) for name, points in found.items() if np.isfinite(list(points.values())).any()}


def _sorted(points: dict[int, float]) -> Series:
    steps = np.fromiter(points, np.float64, len(points))
    values = np.fromiter(points.values(), np.float64, len(points))
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]


def differing(runs: list[Run]) -> dict[str, list[Any]]:
    """{dotted field: value of each run} of the fields in which the runs' configs differ; None where one has no such field."""
    from paperlab.config import flatten

    flat = [dict(flatten(run.config)) for run in runs]
    paths = dict.fromkeys(path for config in flat for path in config)
    table = {path: [config.get(path) for config in flat] for path in paths}
    known = [i for i, config in enumerate(flat) if config]
    return {p: values for p, values in table.items() if any(values[i] != values[known[0]] for i in known)}

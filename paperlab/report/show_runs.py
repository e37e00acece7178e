"""The runs: for every task a table, the curves over each other, what differs, and each run by itself."""

from collections import Counter
from typing import Any

import numpy as np

from paperlab.report import show_run
from paperlab.report.charts import COLOURS, Curve, chart, ink
from paperlab.report.elements import Element, h, table
from paperlab.report.numbers import duration, float_of, number
from paperlab.report.runs import Run
from paperlab.report.show_differences import differences
from paperlab.report.show_values import baseline_name, scroll

GOOD = {"complete"}
QUIET_METRICS = ("seconds", "eta")
LAST_GROUP = ("grad_norm", "learning_rate", "tokens_per_second", "examples_per_second", "steps_per_second", "mfu")
MOST_CHARTS = 32
MANY_RUNS = 16

Curves = dict[str, dict[str, Any]]


def section(runs: list[Run], pictures: Any) -> tuple[list[Element], Curves]:
    """Everything about the runs, and what the read-outs of their charts need.

    Args:
      pictures: turns a file into an element (see `page.Pictures`).
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(run.option("task.name") or ""), []).append(run)
    content, curves = [], {}
    for place, (task, members) in enumerate(sorted(groups.items(), key=lambda item: (not item[0], item[0]))):
        element, drawn = _group(f"g{place}", task, ranked(members), pictures)
        content.append(element)
        curves.update(drawn)
    return content, curves


def ranked(runs: list[Run]) -> list[Run]:
    """The best headline first; runs whose headline is another metric, or that have none, after those that share it."""
    name = judged_by(runs)
    sign = -1 if any(run.option("checkpoint.best_mode") == "max" for run in runs) else 1

    def place(run: Run) -> tuple[bool, float, str]:
        own, value = run.headline
        return (own != name or value is None, sign * (value or 0.0), str(run.path))

    return sorted(runs, key=place)


def judged_by(runs: list[Run]) -> str:
    """The metric by which most runs are judged; one that a config names before one that is only there."""
    named = [name for run in runs if (name := run.headline[0]) and name == run.option("checkpoint.best_metric")]
    common = Counter(named or [run.headline[0] for run in runs if run.headline[0]]).most_common(1)
    return common[0][0] if common else ""


def _group(identity: str, task: str, runs: list[Run], pictures: Any) -> tuple[Element, Curves]:
    """The runs of one task."""
    title = task.rpartition(".")[2].replace("_", " ").capitalize() if task else "No task known"
    keys = {str(run.path): f"{identity}-{place}" for place, run in enumerate(runs)}
    drawn_runs = [str(run.path) for run in runs if run.series]
    inks = {path: ink(place) for place, path in enumerate(drawn_runs)}
    figures, more, curves = _charts(identity, runs, keys, inks)
    folded = h("details", h("summary", f"{len(more)} more"), h("div", more, class_="charts"), class_="more")
    element = h(
        "section",
        h("h3", title, h("small", f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}")),
        _table(runs, keys, inks),
        _legend(runs, keys, inks) if figures else None,
        h("div", figures, class_="charts"),
        folded if more else None,
        differences(runs, inks),
        _each(runs, keys, pictures),
        class_="task",
        id=identity,
        aria_label=title,
    )
    return element, curves


def _each(runs: list[Run], keys: dict[str, str], pictures: Any) -> Element:
    """Every run by itself; many are folded away together."""
    blocks = h("div", [show_run.details(run, keys[str(run.path)], pictures) for run in runs], class_="each")
    if len(runs) <= MANY_RUNS:
        return blocks
    return h("details", h("summary", f"The {len(runs)} runs one by one"), blocks, class_="block")


def badge(status: str) -> Element:
    """A status in its colour; the word says it too."""
    return h("span", status, class_=f"badge {'good' if status in GOOD else 'bad' if status == 'damaged' else 'open'}")


def _table(runs: list[Run], keys: dict[str, str], inks: dict[str, str]) -> Element:
    """One line a run."""
    names = {run.headline[0] for run in runs} - {""}
    one = names.pop() if len(names) == 1 else ""
    header = [
        "run",
        "status",
        "steps",
        one.replace("_", " ") or "result",
        "best baseline",
        "tokens/s",
        "time",
        "device",
    ]
    incidents = any(run.incidents for run in runs)
    rows = [_row(run, keys[str(run.path)], inks.get(str(run.path)), one, incidents) for run in runs]
    cells = [_sortable(name) for name in [*header, *(["incidents"] if incidents else []), "begun"]]
    caption = f"{len(runs)} runs with status, steps and results"
    return scroll(table(cells, rows, caption=caption, class_="runs"), caption, tall=len(runs) > MANY_RUNS)


def _sortable(name: str) -> Element:
    return h("th", name, scope="col", data_sort=True)


def _cell(text: Any, sort: Any = None) -> Element:
    return h("td", text, data_value="" if sort is None else sort)


def _row(run: Run, key: str, colour: str | None, one: str, incidents: bool) -> list[Any]:
    name, value = run.headline
    best = _best_baseline(run)
    rate = next((run.last(unit) for unit in LAST_GROUP[2:4] if run.last(unit) is not None), None)
    total = float_of(run.option("train.steps"))
    done = [number(run.steps), h("span", f" / {number(total)}", class_="quiet")] if total else number(run.steps)
    devices = run.summary.get("devices")
    begun = str(run.invocations[0].get("date", ""))[:16].replace("T", " ") if run.invocations else ""
    seconds = float_of(run.summary.get("seconds")) or run.last("seconds")
    note = "" if one or not name else h("small", name.replace("_", " "))
    row = [
        h(
            "th",
            h("span", class_=f"swatch {colour or 'none'}"),
            h("a", run.name, href=f"#{key}"),
            scope="row",
        ),
        _cell(badge(run.status), run.status),
        _cell(done, run.steps),
        _cell([number(value, aligned=True), " ", note], value),
        _cell(
            [number(best[1], aligned=True), " ", h("small", best[0])] if best else number(None),
            best[1] if best else None,
        ),
        _cell(number(rate and round(rate, 1 if rate < 100 else None)), rate),
        _cell(duration(seconds), seconds),
        _cell(_device(devices), _device(devices)),
    ]
    count = _cell(str(len(run.incidents) or ""), len(run.incidents))
    return [*row, *([count] if incidents else []), _cell(h("span", begun, class_="nowrap"), begun)]


def _best_baseline(run: Run) -> tuple[str, float] | None:
    """The strongest of what the headline is to be compared with; entropies are no models."""
    known = {name: value for name, value in run.baselines().items() if "entropy" not in name}
    if not known:
        return None
    highest = run.option("checkpoint.best_mode") == "max" or run.headline[0].endswith("accuracy")
    name = (max if highest else min)(known, key=lambda name: known[name])
    return baseline_name(name), known[name]


def _device(devices: Any) -> str:
    if not isinstance(devices, dict):
        return number(None)
    count, processes = devices.get("count"), devices.get("processes")
    many = f" \N{MULTIPLICATION SIGN} {number(count)}" if count not in (None, 1) else ""
    return f"{devices.get('kind', '?')}{many}" + (
        f", {number(processes)} processes" if processes not in (None, 1) else ""
    )


def _legend(runs: list[Run], keys: dict[str, str], inks: dict[str, str]) -> Element:
    """Which line is which; with a script each can be hidden."""

    def entry(run: Run) -> Element:
        box = h("input", type="checkbox", checked=True, data_toggles=keys[str(run.path)])
        return h("li", h("label", box, h("span", class_=f"swatch {inks[str(run.path)]}"), run.name))

    drawn = [run for run in runs if str(run.path) in inks]
    first, rest = drawn[:COLOURS], drawn[COLOURS:]
    entries = h("ul", [entry(run) for run in first], class_="legend")
    if not rest:
        return entries
    others = h("ul", [entry(run) for run in rest], class_="legend")
    return h("div", entries, h("details", h("summary", f"{len(rest)} more, in grey"), others, class_="others"))


def _charts(
    identity: str, runs: list[Run], keys: dict[str, str], inks: dict[str, str]
) -> tuple[list[Element], list[Element], Curves]:
    """(charts of what is learned, charts of how, what their read-outs need)."""
    names = Counter(name for run in runs for name in run.series)
    chosen = [name for name in names if name not in QUIET_METRICS and _moves(runs, name)]
    if any(name in names for name in LAST_GROUP[2:4]):
        chosen = [name for name in chosen if name != "steps_per_second"]
    evaluators = {name for run in runs for name in (run.option("evaluators") or {})}
    stems = {name: _stem(name, evaluators) for name in chosen}
    judged = stems.get(judged_by(runs), "loss")
    order = list(dict.fromkeys(stems[name] for name in names if name in stems))
    first = sorted(
        (name for name in chosen if not _is_how(name)),
        key=lambda name: (
            stems[name] != judged,
            stems[name] != "loss",
            order.index(stems[name]),
            name == stems[name],
        ),
    )
    last = [name for name in chosen if name not in first]
    figures: dict[bool, list[Element]] = {True: [], False: []}
    curves: Curves = {}
    for place, name in enumerate([*first, *last][:MOST_CHARTS]):
        lines = [
            Curve(keys[str(run.path)], run.name, run.series[name], inks[str(run.path)], run.happened)
            for run in runs
            if name in run.series
        ]
        levels = _levels([run for run in runs if run.headline[0] == name])
        drawn = chart(f"{identity}-c{place}", name.replace("_", " "), lines, references=levels)
        if drawn is not None:
            figures[name in first[:4]].append(drawn[0])
            curves[f"{identity}-c{place}"] = drawn[1]
    return figures[True], figures[False], curves


def _stem(name: str, evaluators: set[str]) -> str:
    """`val_loss` -> loss, where val is an evaluator: what is measured, on whatever data."""
    return next((name.removeprefix(f"{e}_") for e in sorted(evaluators) if name.startswith(f"{e}_")), name)


def _is_how(name: str) -> bool:
    """Whether a metric says how a run learned, not what."""
    return name in LAST_GROUP or name.endswith(("_norm", "_wait", "_per_second"))


def _moves(runs: list[Run], name: str) -> bool:
    """Not zero throughout."""
    return any(name in run.series and bool(np.nan_to_num(run.series[name][1]).any()) for run in runs)


def _levels(runs: list[Run]) -> dict[str, float]:
    """The baselines on which all runs that name them agree."""
    found: dict[str, set[float]] = {}
    for run in runs:
        for name, value in run.baselines().items():
            if "entropy" not in name:
                found.setdefault(baseline_name(name), set()).add(value)
    return {name: values.pop() for name, values in found.items() if len(values) == 1}

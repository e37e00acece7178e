"""The runs: for every task a table, the curves over each other, what differs, and each run by itself."""

from collections import Counter
from typing import Any

import numpy as np

from paperlab.report import show_run
from paperlab.report.charts import COLOURS, Curve, chart, ink
from paperlab.report.elements import Element, h, hidden, table
from paperlab.report.numbers import duration, float_of, number
from paperlab.report.runs import Run, differing
from paperlab.report.show_values import scroll, shown

GOOD = {"complete"}
QUIET_METRICS = ("seconds", "eta")
LAST_GROUP = ("grad_norm", "learning_rate", "tokens_per_second", "examples_per_second", "steps_per_second", "mfu")
MOST_CHARTS = 32
MOST_FIELDS = 80
FEW_RUNS = 5

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
    common = Counter(run.headline[0] for run in runs if run.headline[0]).most_common(1)
    name = common[0][0] if common else ""
    sign = -1 if any(run.option("checkpoint.best_mode") == "max" for run in runs) else 1

    def place(run: Run) -> tuple[bool, float, str]:
        own, value = run.headline
        return (own != name or value is None, sign * (value or 0.0), str(run.path))

    return sorted(runs, key=place)


def _group(identity: str, task: str, runs: list[Run], pictures: Any) -> tuple[Element, Curves]:
    """The runs of one task."""
    title = task.rpartition(".")[2].replace("_", " ").capitalize() if task else "No task known"
    keys = {str(run.path): f"{identity}-{place}" for place, run in enumerate(runs)}
    figures, more, curves = _charts(identity, runs, keys)
    folded = h("details", h("summary", f"{len(more)} more"), h("div", more, class_="charts"), class_="more")
    element = h(
        "section",
        h("h3", title, h("small", f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}")),
        _table(runs, keys),
        _legend(runs, keys) if figures else None,
        h("div", figures, class_="charts"),
        folded if more else None,
        _differences(runs),
        h("div", [show_run.details(run, keys[str(run.path)], pictures) for run in runs], class_="each"),
        class_="task",
        id=identity,
        aria_label=title,
    )
    return element, curves


def badge(status: str) -> Element:
    """A status in its colour; the word says it too."""
    return h("span", status, class_=f"badge {'good' if status in GOOD else 'bad' if status == 'damaged' else 'open'}")


def _table(runs: list[Run], keys: dict[str, str]) -> Element:
    """One line a run."""
    names = {run.headline[0] for run in runs} - {""}
    one = names.pop() if len(names) == 1 else ""
    header = ["run", "status", "steps", one.replace("_", " ") or "result", "best baseline", "tokens/s", "time", "device"]
    incidents = any(run.incidents for run in runs)
    rows = [_row(run, keys[str(run.path)], one, incidents) for run in runs]
    cells = [_sortable(name) for name in [*header, *(["incidents"] if incidents else []), "begun"]]
    caption = f"{len(runs)} runs with status, steps and results"
    return scroll(table(cells, rows, caption=caption, class_="runs sortable"), caption)


def _sortable(name: str) -> Element:
    return h("th", name, scope="col", data_sort=True)


def _cell(text: Any, sort: Any = None) -> Element:
    return h("td", text, data_value="" if sort is None else sort)


def _row(run: Run, key: str, one: str, incidents: bool) -> list[Any]:
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
            h("span", class_=f"swatch {ink(int(key.rpartition('-')[2]))}"),
            h("a", run.name, href=f"#{key}"),
            scope="row",
        ),
        _cell(badge(run.status), run.status),
        _cell(done, run.steps),
        _cell([number(value), note], value),
        _cell([number(best[1]), h("small", best[0])] if best else number(None), best[1] if best else None),
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
    return name.replace("_", " "), known[name]


def _device(devices: Any) -> str:
    if not isinstance(devices, dict):
        return number(None)
    count, processes = devices.get("count"), devices.get("processes")
    many = f" \N{MULTIPLICATION SIGN} {number(count)}" if count not in (None, 1) else ""
    return f"{devices.get('kind', '?')}{many}" + (f", {number(processes)} processes" if processes not in (None, 1) else "")


def _legend(runs: list[Run], keys: dict[str, str]) -> Element:
    """Which line is which; with a script each can be hidden."""

    def entry(place: int, run: Run) -> Element:
        box = h("input", type="checkbox", checked=True, data_toggles=keys[str(run.path)])
        return h("li", h("label", box, h("span", class_=f"swatch {ink(place)}"), run.name))

    drawn = [(place, run) for place, run in enumerate(runs) if run.series]
    first, rest = drawn[:COLOURS], drawn[COLOURS:]
    entries = h("ul", [entry(*item) for item in first], class_="legend")
    if not rest:
        return entries
    others = h("ul", [entry(*item) for item in rest], class_="legend")
    note = f"{len(rest)} more, in grey"
    return h("div", entries, h("details", h("summary", note), others, class_="others"), class_="legends")


def _charts(identity: str, runs: list[Run], keys: dict[str, str]) -> tuple[list[Element], list[Element], Curves]:
    """(charts of what is learned, charts of how, what their read-outs need)."""
    names = Counter(name for run in runs for name in run.series)
    headlines = Counter(run.headline[0] for run in runs)
    chosen = [name for name in names if name not in QUIET_METRICS and _moves(runs, name)]
    if any(name in names for name in LAST_GROUP[2:4]):
        chosen = [name for name in chosen if name != "steps_per_second"]
    order = list(names)
    first = sorted(
        (name for name in chosen if not _is_how(name, order)),
        key=lambda name: (-headlines[name], "_" not in name, order.index(name)),
    )
    last = [name for name in chosen if name not in first]
    figures: dict[bool, list[Element]] = {True: [], False: []}
    curves: Curves = {}
    for place, name in enumerate([*first, *last][:MOST_CHARTS]):
        lines = [
            Curve(keys[str(run.path)], run.name, run.series[name], ink(i))
            for i, run in enumerate(runs)
            if name in run.series
        ]
        levels = _levels(runs) if headlines[name] else {}
        drawn = chart(f"{identity}-c{place}", name.replace("_", " "), lines, references=levels)
        if drawn is not None:
            figures[name in first[:4]].append(drawn[0])
            curves[f"{identity}-c{place}"] = drawn[1]
    return figures[True], figures[False], curves


def _is_how(name: str, order: list[str]) -> bool:
    """Whether a metric says how a run learned, not what."""
    return name in LAST_GROUP or name.endswith(("_norm", "_wait", "_per_second")) or name not in order


def _moves(runs: list[Run], name: str) -> bool:
    """Not zero throughout."""
    return any(name in run.series and bool(np.nan_to_num(run.series[name][1]).any()) for run in runs)


def _levels(runs: list[Run]) -> dict[str, float]:
    """The baselines on which all runs that name them agree."""
    found: dict[str, set[float]] = {}
    for run in runs:
        for name, value in run.baselines().items():
            if "entropy" not in name:
                found.setdefault(name.replace("_", " "), set()).add(value)
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def _differences(runs: list[Run]) -> Element | None:
    """The fields in which the runs' configs differ; values other than the most common one stand out."""
    runs = [run for run in runs if run.config]
    if len(runs) < 2:
        return None
    fields = differing(runs)
    if not fields:
        return h("p", "All of them have the same configuration.", class_="note")
    paths = list(fields)[:MOST_FIELDS]
    rare: dict[str, list[bool]] = {}
    for path in paths:
        words = [repr(value) for value in fields[path]]
        common = Counter(words).most_common(2)
        even = len(common) > 1 and common[0][1] == common[1][1]
        rare[path] = [even or word != common[0][0] for word in words]

    def cell(path: str, i: int) -> Element:
        value = fields[path][i]
        return h("td", shown(value) if value is not None else number(None), class_="rare" if rare[path][i] else "usual")

    labels = [
        [h("span", class_=f"swatch {ink(i)}"), run.variant or run.name] if _unique(runs) else [run.name]
        for i, run in enumerate(runs)
    ]
    caption = "Fields in which the runs' configurations differ"
    if len(runs) <= FEW_RUNS:
        header = ["field", *(h("th", label, scope="col") for label in labels)]
        rows = [[h("th", h("code", path), scope="row"), *(cell(path, i) for i in range(len(runs)))] for path in paths]
    else:
        header = ["run", *(h("th", h("code", path), scope="col") for path in paths)]
        rows = [
            [h("th", label, scope="row"), *(cell(path, i) for path in paths)]
            for i, label in enumerate(labels)
        ]
    left_out = f"{len(fields) - len(paths)} more fields differ." if len(fields) > len(paths) else None
    return h(
        "details",
        h("summary", f"What differs: {len(fields)} {'field' if len(fields) == 1 else 'fields'}", hidden(" of the configurations")),
        scroll(table(header, rows, caption=caption, class_="differences"), caption),
        h("p", left_out, class_="note") if left_out else None,
        class_="block",
        open=len(fields) <= 40 and len(runs) <= 40,
    )


def _unique(runs: list[Run]) -> bool:
    variants = [run.variant or run.name for run in runs]
    return len(set(variants)) == len(variants)

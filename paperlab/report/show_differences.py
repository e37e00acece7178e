"""Where the configs of runs differ: the fields that have other values, and the parts that only some of them use."""

from collections import Counter
from typing import Any

from paperlab.report.elements import Element, h, hidden, table
from paperlab.report.numbers import number
from paperlab.report.runs import Run, differing
from paperlab.report.show_values import scroll, shown

FEW_RUNS = 5
MOST_FIELDS = 80
UNFOLDED = (40, 40)  # at most so many fields and runs
SAID_ELSEWHERE = ("slug", "variant")


def differences(runs: list[Run], inks: dict[str, str]) -> Element | None:
    """The fields in which the configs differ, one column a run while they are few; None for less than two runs."""
    runs = [run for run in runs if run.config]
    if len(runs) < 2:
        return None
    every = {path: values for path, values in differing(runs).items() if path not in SAID_ELSEWHERE}
    fields = {path: values for path, values in every.items() if len({repr(v) for v in values if v is not None}) > 1}
    partly = {path: values for path, values in every.items() if path not in fields}
    if not every:
        return h("p", "All of them have the same configuration.", class_="note")
    title = f"What differs: {len(fields)} {'field' if len(fields) == 1 else 'fields'}" if fields else "What differs"
    left_out = len(fields) - MOST_FIELDS
    return h(
        "details",
        h("summary", title, hidden(" of the configurations")),
        _table(runs, inks, dict(list(fields.items())[:MOST_FIELDS])) if fields else None,
        h("p", f"{left_out} more fields differ.", class_="note") if left_out > 0 else None,
        _parts(runs, partly),
        class_="block",
        open=len(fields) <= UNFOLDED[0] and len(runs) <= UNFOLDED[1],
    )


def _table(runs: list[Run], inks: dict[str, str], fields: dict[str, list[Any]]) -> Element:
    """Values other than the most common one stand out."""
    colours = [inks.get(str(run.path), "none") for run in runs]
    labels = [[h("span", class_=f"swatch {c}"), name] for c, name in zip(colours, _names(runs), strict=True)]
    rare = {path: _rare(values) for path, values in fields.items()}

    def cell(path: str, i: int) -> Element:
        value = fields[path][i]
        return h("td", number(None) if value is None else shown(value), class_="rare" if rare[path][i] else "usual")

    caption = "Fields in which the configurations differ"
    if len(runs) <= FEW_RUNS:
        header: list[Any] = ["field", *(h("th", label, scope="col") for label in labels)]
        rows = [[h("th", h("code", p), scope="row"), *(cell(p, i) for i in range(len(runs)))] for p in fields]
    else:
        header = ["run", *(h("th", h("code", path), scope="col") for path in fields)]
        rows = [[h("th", label, scope="row"), *(cell(p, i) for p in fields)] for i, label in enumerate(labels)]
    return scroll(table(header, rows, caption=caption, class_="differences"), caption, tall=len(runs) > 16)


def _names(runs: list[Run]) -> list[str]:
    """The variants, where they tell the runs apart; else the names."""
    variants = [run.variant or "default" for run in runs]
    return variants if len(set(variants)) == len(variants) else [run.name for run in runs]


def _rare(values: list[Any]) -> list[bool]:
    """Which values are not the most common one; all, where there is no single most common one."""
    words = [repr(value) for value in values]
    common = Counter(words).most_common(2)
    tied = len(common) > 1 and common[0][1] == common[1][1]
    return [tied or word != common[0][0] for word in words]


def _parts(runs: list[Run], partly: dict[str, list[Any]]) -> Element | None:
    """The fields that only some configs have, gathered by section: their values are the same wherever they stand."""
    if not partly:
        return None
    names = _names(runs)
    sections: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for path, values in partly.items():
        have = tuple(i for i, value in enumerate(values) if value is not None)
        sections.setdefault((path.rpartition(".")[0], have), []).append(path)
    items = []
    for (section, have), paths in sections.items():
        what = h("code", f"{section}.*" if section and len(paths) > 1 else paths[0])
        count = f" ({len(paths)} fields)" if len(paths) > 1 else ""
        who = ", ".join(names[i] for i in have[:6]) + (f" and {len(have) - 6} more" if len(have) > 6 else "")
        items.append(h("li", what, count, f": {who}"))
    return h("div", h("p", "Only in some:", class_="note"), h("ul", items, class_="parts"))

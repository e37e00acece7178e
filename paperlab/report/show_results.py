"""Benchmarks and the fault campaign: times with their spread, aims met and not met, faults survived."""

from typing import Any

import numpy as np

from paperlab.report.bars import bar
from paperlab.report.charts import Curve, chart, ink
from paperlab.report.elements import Element, h, table
from paperlab.report.numbers import duration, float_of, number
from paperlab.report.records import Document
from paperlab.report.show_values import facts, problems, scroll, shown

SCORED = {"ms", "spread", "bench", "case"}
ABOUT = ("device", "machine", "date", "commit", "dirty")
LINE_FROM = 3  # so many cases that differ in one number are drawn as a line
MOST_FAILURES = 100


def benches(documents: list[Document]) -> tuple[list[Element], dict[str, Any]]:
    """One block a document, and what the read-outs of its charts need."""
    sections, curves = [], {}
    for place, document in enumerate(documents):
        names = list(dict.fromkeys(str(row.get("bench", "")) for row in document.dictionaries("rows")))
        blocks = []
        for number_, name in enumerate(names):
            rows = [row for row in document.dictionaries("rows") if str(row.get("bench", "")) == name]
            block, drawn = _bench(f"b{place}-{number_}", name, rows)
            blocks.append(block)
            curves.update(drawn)
        title = str(document.content.get("title") or document.file.stem)
        sections.append(
            h(
                "section",
                h("h3", title),
                about(document),
                problems(document.problems),
                _aims(document.dictionaries("aims")),
                blocks,
                h("p", "Nothing measured.", class_="note") if not names and not document.problems else None,
                id=f"bench-{document.file.stem}",
                class_="bench",
            )
        )
    return sections, curves


def about(document: Document) -> Element | None:
    """Where and when it was measured."""
    content = document.content
    parts: list[Any] = []
    for name in ABOUT:
        value = content.get(name)
        if name == "dirty":
            told: Any = h("span", "uncommitted changes", class_="badge open") if value else None
        elif name == "commit":
            told = h("code", str(value)[:10]) if value else None
        else:
            told = str(value)[:19].replace("T", " ") if value and name == "date" else shown(value) if value else None
        if told is not None:
            parts += [" \N{MIDDLE DOT} " if parts else "", told]
    versions = document.dictionary("versions")
    if versions:
        parts += [" \N{MIDDLE DOT} ", ", ".join(f"{name} {version}" for name, version in list(versions.items())[:4])]
    return h("p", parts, class_="where") if parts else None


def _aims(aims: list[dict[str, Any]]) -> Element | None:
    """What was aimed at; what was not met stands first."""
    if not aims:
        return None
    aims = sorted(aims, key=lambda aim: aim.get("met") is True)
    rows = []
    for aim in aims:
        unit = str(aim.get("unit") or "")
        met = aim.get("met") is True
        words = str(aim.get("comparison") or "").replace("<=", "\N{LESS-THAN OR EQUAL TO}")
        words = words.replace(">=", "\N{GREATER-THAN OR EQUAL TO}")
        rows.append(
            [
                h("th", str(aim.get("what") or aim.get("bench") or "?"), scope="row"),
                f"{number(aim.get('value'))} {unit}".strip(),
                f"{words} {number(aim.get('aim'))} {unit}".strip(),
                h("span", "met" if met else "not met", class_=f"badge {'good' if met else 'bad'}"),
            ]
        )
    caption = "Aims"
    return scroll(table(("aim", "measured", "aimed at", ""), rows, caption=caption, class_="aims"), caption)


def _bench(identity: str, name: str, rows: list[dict[str, Any]]) -> tuple[Element, dict[str, Any]]:
    """The times of one benchmark: as lines where the cases are a series, as bars always."""
    drawn = _lines(identity, name, rows)
    times = [t for row in rows for t in _times(row).values()]
    top = max([*times, *(end for row in rows for ends in _spreads(row).values() for end in ends)], default=0.0)
    block = h(
        "div",
        h("h4", name or "benchmark"),
        h("div", drawn[0], class_="charts") if drawn else None,
        _times_table(name, rows, top) if times else None,
        _extras(name, rows),
    )
    return block, {identity: drawn[1]} if drawn else {}


def _times(row: dict[str, Any]) -> dict[str, float]:
    """{label: milliseconds}."""
    told = row.get("ms")
    found = {str(k): float_of(v) for k, v in told.items()} if isinstance(told, dict) else {}
    return {label: value for label, value in found.items() if value is not None}


def _spreads(row: dict[str, Any]) -> dict[str, list[float]]:
    """{label: [lower, upper quartile]}, where both are numbers."""
    told = row.get("spread")
    found = {str(k): v for k, v in told.items() if isinstance(v, list)} if isinstance(told, dict) else {}
    ends = {label: [end for end in map(float_of, pair) if end is not None] for label, pair in found.items()}
    return {label: pair for label, pair in ends.items() if len(pair) == 2}


def _case(row: dict[str, Any]) -> dict[str, Any]:
    case = row.get("case")
    return case if isinstance(case, dict) else {}


def _case_text(row: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in _case(row).items())


def _times_table(name: str, rows: list[dict[str, Any]], top: float) -> Element:
    """Median, quartiles and ratio to the first of a case, with a bar from zero."""
    lines: list[list[Any]] = []
    for row in rows:
        times = _times(row)
        reference = next(iter(times.values()), None)
        spreads = _spreads(row)
        if times and _case_text(row):
            lines.append([h("th", _case_text(row), scope="rowgroup", colspan=5, class_="case")])
        for label, value in times.items():
            spread = spreads.get(label, [])
            ratio = f"{value / reference:.3g}" if reference and len(times) > 1 else number(None)
            lines.append(
                [
                    label.replace("_", " "),
                    _number(milliseconds(value)),
                    _number(" to ".join(map(number, spread)) or number(None)),
                    _number(ratio),
                    h("td", bar(value, top, spread=spread), class_="drawn"),
                ]
            )
    caption = f"{name}: median of the rounds, in milliseconds"
    header = ("", *(h("th", t, scope="col", class_="n") for t in ("ms", "quartiles", "ratio")), "")
    return scroll(table(header, lines, caption=caption, class_="bars"), caption)


def milliseconds(value: float) -> str:
    """Four digits; from ten seconds on, whole milliseconds."""
    return number(value) if value < 10_000 else number(round(value))


def _number(text: str) -> Element:
    return h("td", text, class_="n")


def _extras(name: str, rows: list[dict[str, Any]]) -> Element | None:
    """The numbers beside the times."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in SCORED))
    if not columns:
        return None
    plain = [key for key in columns if not any(isinstance(row.get(key), dict) for row in rows)]
    lines = [[_case_text(row) or "all", *(_number(shown(row.get(key))) for key in plain)] for row in rows]
    header = ("case", *(h("th", key.replace("_", " "), scope="col", class_="n") for key in plain))
    inner = [
        facts({_case_text(row) or "all": row[key]}) for key in columns if key not in plain for row in rows if key in row
    ]
    numbers = scroll(table(header, lines, caption=f"{name}: more numbers"), f"{name}: more numbers") if plain else None
    return h(
        "details", h("summary", "More numbers"), numbers, inner, class_="block", open=not any(_times(r) for r in rows)
    )


def _lines(identity: str, name: str, rows: list[dict[str, Any]]) -> tuple[Element, dict[str, Any]] | None:
    """The times against the one number in which the cases differ; None where they are no such series."""
    cases = [_case(row) for row in rows]
    keys = list(dict.fromkeys(key for case in cases for key in case))
    moving = [key for key in keys if len({repr(case.get(key)) for case in cases}) > 1]
    by_number = [key for key in moving if all(float_of(case.get(key)) is not None for case in cases)]
    if len(by_number) != 1:
        return None
    key = by_number[0]
    lines: dict[str, dict[float, float]] = {}
    for row, case in zip(rows, cases, strict=True):
        rest = ", ".join(shown(case.get(other)) for other in moving if other != key)
        for label, value in _times(row).items():
            title = " \N{MIDDLE DOT} ".join(part for part in (rest, label.replace("_", " ")) if part)
            lines.setdefault(title, {})[float(case[key])] = value
    if max(map(len, lines.values()), default=0) < LINE_FROM:
        return None
    curves = []
    for place, (label, points) in enumerate(lines.items()):
        x = sorted(points)
        series = np.array(x), np.array([points[at] for at in x])
        curves.append(Curve(f"{identity}-{place}", label, series, ink(place)))
    places = [float(case[key]) for case in cases]
    wide = min(places) > 0 and max(places) / min(places) >= 8
    return chart(
        identity, f"ms by {key.replace('_', ' ')}", curves, x_label=key.replace("_", " "), log_x=wide, legend=True
    )


def faults(document: Document) -> Element:
    """The fault campaign: what was done to the runs, and whether each came back bit for bit."""
    content = document.content
    rounds, passed = content.get("rounds"), content.get("passed")
    kinds, what = document.dictionary("kinds"), document.dictionary("what")
    rows = []
    for name, told in kinds.items():
        told = told if isinstance(told, dict) else {}
        tried, back = float_of(told.get("rounds")), float_of(told.get("recovered"))
        lost = tried is not None and back is not None and back < tried
        words = f"{number(back)} of {number(tried)}"
        mark = h("span", "lost" if lost else "recovered", class_=f"badge {'bad' if lost else 'good'}")
        drawn = h("td", bar(back, tried or 0.0), class_="drawn")
        said = h("small", shown(what[name])) if what.get(name) else None
        named = h("th", str(name).replace("_", " "), said, scope="row", class_="fault")
        rows.append([named, _number(words), mark, drawn])
    header = ("fault", h("th", "recovered", scope="col", class_="n"), "", "")
    seconds = duration(content.get("seconds"))
    caption = "Faults by kind"
    return h(
        "section",
        h(
            "h3",
            str(content.get("title") or "Fault campaign"),
            h("small", f"{number(passed)} of {number(rounds)} rounds"),
        ),
        about(document),
        problems(document.problems),
        h("p", f"Seed {number(content.get('seed'))}, {seconds}.", class_="note") if content else None,
        scroll(table(header, rows, caption=caption, class_="bars"), caption) if rows else None,
        _failures(document.dictionaries("failures")),
        id="faults-record",
    )


def _failures(failures: list[dict[str, Any]]) -> Element | None:
    if not failures:
        return None
    rows = [
        [h("th", number(f.get("round")), scope="row"), shown(f.get("kind")), shown(f.get("what"))]
        for f in failures[:MOST_FAILURES]
    ]
    title = f"Not recovered: {len(failures)}"
    return h(
        "div", h("h4", title), scroll(table(("round", "kind", "what"), rows, caption=title), title), class_="bad-block"
    )

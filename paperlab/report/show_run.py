"""One run by itself: what was asked, how it compares, what happened, what it shows."""

from typing import Any

from paperlab.report.bars import bar
from paperlab.report.elements import Element, h, table
from paperlab.report.numbers import duration, number
from paperlab.report.reading import read_text
from paperlab.report.runs import Run
from paperlab.report.show_values import baseline_name, problems, scroll, sections, shown

MOST_INVOCATIONS = 50
MOST_INCIDENTS = 200
INCIDENT = ("step", "kind", "cause", "what")  # first; the check sum of a line is for programs
MOST_PICTURES = 24


def details(run: Run, key: str, pictures: Any) -> Element:
    """A folded block; open where something is damaged."""
    told = [part for part in (run.slug, run.variant) if part]
    name, value = run.headline
    result = f"{name.replace('_', ' ')} {number(value)}" if name else ""
    summary = h(
        "summary",
        h("span", run.name, class_="name"),
        " ",
        h("span", " \N{MIDDLE DOT} ".join([*told[:1], run.status, *([result] if result else [])]), class_="quiet"),
    )
    return h(
        "details",
        summary,
        problems(run.problems),
        h("p", h("code", str(run.path)), class_="path"),
        _comparison(run),
        _incidents(run),
        _asked(run),
        _seen(run, pictures),
        _samples(run),
        _folded("Summary", sections({k: v for k, v in run.summary.items() if k != "baselines"}), bool(run.summary)),
        _folded("Configuration", sections(run.config), bool(run.config)),
        _parameters(run),
        _checkpoints(run),
        id=key,
        class_="run",
        data_key=key,
        open=bool(run.problems),
    )


def _folded(title: str, content: Any, there: bool) -> Element | None:
    return h("details", h("summary", title), content, class_="block") if there else None


def _comparison(run: Run) -> Element | None:
    """The headline beside its baselines, as bars from zero."""
    known = {name: value for name, value in run.baselines().items() if "entropy" not in name}
    name, value = run.headline
    if not known or value is None:
        return None
    lines = sorted([("this run", value, "own"), *((baseline_name(n), v, "") for n, v in known.items())], key=_by_value)
    top = max(v for _, v, _ in lines)
    title = name.replace("_", " ")
    rows = [
        [
            h("th", label, scope="row", class_=own or None),
            number(v, aligned=True),
            h("td", bar(v, top, ink=own), class_="drawn"),
        ]
        for label, v, own in lines
    ]
    return h(
        "div", h("h4", "Compared"), table(("", title, ""), rows, caption=f"{title} beside its baselines", class_="bars")
    )


def _by_value(line: tuple[str, float, str]) -> float:
    return line[1]


def _incidents(run: Run) -> Element | None:
    """What went wrong while it ran, and what was done."""
    if not run.incidents:
        return None
    names = dict.fromkeys(name for line in run.incidents for name in line if name != "check")
    columns = sorted(names, key=lambda name: INCIDENT.index(name) if name in INCIDENT else len(INCIDENT))[:12]
    rows = [[shown(line.get(name)) for name in columns] for line in run.incidents[-MOST_INCIDENTS:]]
    count = len(run.incidents)
    note = f", the last {MOST_INCIDENTS} shown" if count > MOST_INCIDENTS else ""
    caption = f"Incidents of {run.name}"
    return h(
        "div",
        h("h4", f"Incidents: {count}{note}"),
        scroll(table([name.replace("_", " ") for name in columns], rows, caption=caption), caption),
        class_="incidents",
    )


def _asked(run: Run) -> Element | None:
    """Every invocation: date, what was overridden, what changed."""
    if not run.invocations:
        return None
    items = []
    for call in run.invocations[-MOST_INVOCATIONS:]:
        told, changed = call.get("overrides"), call.get("changed")
        words = [f"{name}={shown(value)}" for name, value in told.items()] if isinstance(told, dict) else []
        moved = []
        if isinstance(changed, dict):
            moved = [f"{n}: {shown(v[0])} \N{RIGHTWARDS ARROW} {shown(v[1])}" for n, v in changed.items() if _pair(v)]
        date = h("time", str(call.get("date", "")).replace("T", " ")[:19])
        asked = h("code", "  ".join(words)) if words else h("span", "as the experiment says", class_="quiet")
        items.append(h("li", date, " ", asked, h("small", "; ".join(moved)) if moved else None))
    return h("div", h("h4", "Asked"), h("ol", items, class_="asked"))


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _seen(run: Run, pictures: Any) -> Element | None:
    """Pictures: curves.png repeats what the charts say, so it is only linked."""
    links: list[Any] = []
    inlined: list[Any] = []
    for file in run.pictures[:MOST_PICTURES]:
        name = str(file.relative_to(run.path))
        (links if name == "curves.png" else inlined).append((file, name))
    content: list[Any] = [h("div", [pictures.figure(*item) for item in inlined], class_="pictures")] if inlined else []
    if links:
        content.append(h("p", [pictures.link(*item) for item in links], class_="links"))
    more = len(run.pictures) - MOST_PICTURES
    return h("div", content, h("p", f"{more} more in the folder.") if more > 0 else None) if content else None


def _samples(run: Run) -> list[Element | None]:
    texts = [(file, read_text(file, 20_000)) for file in run.texts[:8]]
    return [
        _folded(file.stem.replace("_", " ").capitalize(), h("pre", text, tabindex=0), bool(text.strip()))
        for file, text in texts
    ]


def _parameters(run: Run) -> Element | None:
    text = read_text(run.path / "parameters.txt", 40_000)
    return _folded("Parameters", h("pre", text, tabindex=0), bool(text.strip()))


def _checkpoints(run: Run) -> Element:
    kept = f"Checkpoints: {', '.join(number(step) for step in run.checkpoints) or 'none'}."
    aside = f" Set aside: {', '.join(run.set_aside)}." if run.set_aside else ""
    seconds = f" {duration(run.summary.get('seconds'))} of training." if run.summary.get("seconds") else ""
    return h("p", kept + aside + seconds, class_="note")

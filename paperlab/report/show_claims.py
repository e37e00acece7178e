"""The claims of each paper: what is said, where, what was measured, and whether it holds."""

import re
from typing import Any

from paperlab.report.bars import strip
from paperlab.report.elements import Element, h, hidden
from paperlab.report.numbers import duration, float_of, number
from paperlab.report.records import Paper
from paperlab.report.show_values import facts, problems

THRESHOLD = re.compile(r"\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*(x baseline)?\s*$")
NOT_DETAILS = {"plot", "baseline_per_seed"}


def section(papers: list[Paper], pictures: Any) -> list[Element]:
    """One block a paper; the failed claims are named at its head."""
    return [_paper(paper, pictures) for paper in papers]


def identity(slug: str, claim: dict[str, Any]) -> str:
    """Where a claim stands on the page."""
    return "claim-" + re.sub(r"[^\w.-]+", "-", f"{slug}-{claim.get('id')}")


def _paper(paper: Paper, pictures: Any) -> Element:
    failed = [claim for claim in paper.claims if claim.get("passed") is not True]
    told = f"{paper.held} of {len(paper.claims)} hold" if paper.claims else "none recorded"
    links: list[Any] = []
    for claim in failed:
        links += [", " if links else "", h("a", str(claim.get("id")), href=f"#{identity(paper.slug, claim)}")]
    used = set()
    items = []
    for claim in paper.claims:
        plot = _plot(claim)
        file = paper.pictures.get(plot)
        again = plot in used
        used.add(plot)
        items.append(_claim(paper.slug, claim, pictures.figure(file, plot) if file and not again else None))
    rest = [pictures.figure(file, name) for name, file in paper.pictures.items() if name not in used]
    return h(
        "section",
        h("h3", paper.title, h("small", told)),
        h("p", h("span", "fails", class_="badge bad"), " ", links, class_="failed") if failed else None,
        problems(paper.problems),
        h("ol", items, class_="claims") if items else None,
        h("div", rest, class_="pictures") if rest else None,
        class_="paper",
        id=f"paper-{paper.slug}",
    )


def _plot(claim: dict[str, Any]) -> str:
    details = claim.get("details")
    return str(details.get("plot", "")) if isinstance(details, dict) else ""


def _claim(slug: str, claim: dict[str, Any], picture: Element | None) -> Element:
    holds = claim.get("passed") is True
    details = claim.get("details")
    details = details if isinstance(details, dict) else {}
    verdict = h("span", "holds" if holds else "fails", class_=f"badge {'good' if holds else 'bad'}")
    rest = {name: value for name, value in details.items() if name not in NOT_DETAILS}
    return h(
        "li",
        h("div", verdict, h("span", str(claim.get("id", "?")), class_="id"), class_="verdict"),
        h(
            "div",
            h("p", str(claim.get("statement", "no statement recorded")), class_="statement"),
            h("p", str(claim.get("source") or "no source recorded"), class_="source"),
            h("div", picture, class_="pictures") if picture is not None else None,
            _where(claim),
            h("details", h("summary", "Details", hidden(f" of {claim.get('id')}")), facts(rest)) if rest else None,
            class_="said",
        ),
        _measured(claim, details),
        id=identity(slug, claim),
        class_="holds" if holds else "fails",
    )


def _measured(claim: dict[str, Any], details: dict[str, Any]) -> Element:
    """Value, baseline and threshold, the seeds one by one, and the strip that shows them."""
    seeds, others = _numbers(claim.get("per_seed")), _numbers(details.get("baseline_per_seed"))
    value, baseline = float_of(claim.get("value")), float_of(claim.get("baseline"))
    relation, bound = bound_of(claim)
    terms = [
        h("dt", "measured"),
        h("dd", number(claim.get("value"), aligned=True) if value is not None else "not a number"),
    ]
    if claim.get("baseline") is not None:
        terms += [h("dt", "baseline"), h("dd", number(claim.get("baseline"), aligned=True))]
    terms += [h("dt", "threshold"), h("dd", spaced(str(claim.get("threshold") or "none")))]
    if claim.get("per_seed"):
        terms += [
            h("dt", "each seed"),
            h("dd", ", ".join(number(seed, aligned=True) for seed in seeds) or "not numbers"),
        ]
    if others:
        terms += [h("dt", "baseline, each seed"), h("dd", ", ".join(number(seed, aligned=True) for seed in others))]
    drawn = strip(value, seeds, others or ([] if baseline is None else [baseline]), bound, relation)
    return h("div", drawn, h("dl", terms), class_="measured")


def spaced(threshold: str) -> str:
    """`<= 0.97 x baseline` as it is set in print; what is no threshold as it is."""
    match = THRESHOLD.match(threshold)
    if match is None:
        return threshold
    relation = match[1].replace("<=", "\N{LESS-THAN OR EQUAL TO}").replace(">=", "\N{GREATER-THAN OR EQUAL TO}")
    try:
        factor = float(match[2])
    except ValueError:
        return threshold
    if not match[3]:
        return f"{relation} {number(factor)}"
    return f"{relation} " + ("" if factor == 1 else f"{number(factor)} \N{MULTIPLICATION SIGN} ") + "baseline"


def bound_of(claim: dict[str, Any]) -> tuple[str, float | None]:
    """(relation, number) of a claim's threshold, in the unit of its value; ("", None) where it has none to draw."""
    match = THRESHOLD.match(str(claim.get("threshold", "")))
    if match is None:
        return "", None
    try:
        factor = float(match[2])
    except ValueError:
        return "", None
    baseline = float_of(claim.get("baseline"))
    if match[3] and baseline is None:
        return "", None
    return match[1], factor * (baseline or 0.0) if match[3] else factor


def _numbers(values: Any) -> list[float]:
    """The numbers of a list, where all are."""
    found = [float_of(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None] if None not in found else []


def _where(claim: dict[str, Any]) -> Element:
    """Device, time, commit, date."""
    commit = str(claim.get("commit") or "")
    told = [
        str(claim.get("device") or "device unknown"),
        duration(claim.get("seconds")),
        h("code", commit[:10]) if commit else "no commit",
        str(claim.get("date") or "no date"),
    ]
    parts: list[Any] = []
    for part in told:
        parts += [" \N{MIDDLE DOT} " if parts else "", part]
    dirty = h("span", "uncommitted changes", class_="badge open") if claim.get("dirty") else None
    return h("p", parts, " " if dirty is not None else "", dirty, class_="where")

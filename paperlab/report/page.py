"""The whole page: head, overview, sections; one file that loads nothing and needs nothing.

A content security policy in the page lets the browser hold to that: no request leaves it, and no script runs but the one
whose digest it names.
"""

import base64
import hashlib
import json
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from paperlab.report import records, runs, show_claims, show_results, show_runs
from paperlab.report.elements import Element, h, hidden, to_html
from paperlab.report.reading import read_bytes

HERE = Path(__file__).parent
LARGEST_PICTURE = 2 << 20
ALL_PICTURES = 16 << 20
SIGNATURES = {
    ".png": (b"\x89PNG\r\n", "image/png"),
    ".svg": (b"", "image/svg+xml"),
    ".jpg": (b"\xff\xd8", "image/jpeg"),
    ".jpeg": (b"\xff\xd8", "image/jpeg"),
    ".gif": (b"GIF8", "image/gif"),
    ".webp": (b"RIFF", "image/webp"),
}


class Pictures:
    """Turns picture files into figures: inlined while there is room, else linked, damaged ones named.

    Args:
      out: where the page will lie; links are relative to its folder.
    """

    def __init__(self, out: Path):
        self.folder, self.left = out.resolve().parent, ALL_PICTURES

    def figure(self, file: Path, name: str) -> Element:
        """The picture with its name under it."""
        data, problem = read_bytes(file, LARGEST_PICTURE)
        signature, kind = SIGNATURES[file.suffix.lower()]
        if data is not None and not (data.startswith(signature) and data.strip()):
            return h("figure", h("figcaption", f"{name} is damaged: not {kind}"))
        if data is None or len(data) > self.left:
            return h("figure", h("figcaption", self.link(file, name), f" ({problem})" if problem else None))
        self.left -= len(data)
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        width, height = struct.unpack(">II", data[16:24]) if kind == "image/png" and len(data) > 24 else (None, None)
        words = f"Picture: {file.stem.replace('_', ' ')}"
        picture = h("img", src=source, alt=words, width=width, height=height, decoding="async")
        return h("figure", picture, h("figcaption", name))

    def link(self, file: Path, name: str) -> Element:
        """A link that holds as long as the page and the file keep their places."""
        return h("a", name, href=quote(os.path.relpath(file.resolve(), self.folder)))


def page(found: list[runs.Run], results: Path, *, made: str, out: Path, asked: str = "") -> str:
    """The document as text.

    Args:
      found: the runs.
      results: the folder with claims/, bench/ and faults.json.
      made: when, and from which version; set at the head.
      out: where it will lie.
      asked: what was looked through, in words.
    """
    pictures = Pictures(out)
    papers, benches, faults = records.papers(results), records.benches(results), records.faults(results)
    run_parts, curves = show_runs.section(found, pictures)
    bench_parts, bench_curves = show_results.benches(benches)
    body = [
        h("a", "Skip to the runs", href="#runs", class_="skip"),
        h("header", h("h1", "paperlab: runs, claims, benchmarks"), _themes(), h("p", made, class_="where")),
        _overview(found, papers, benches, faults),
        h(
            "main",
            _part("runs", "Runs", RUNS_TEXT if found else f"No runs in {asked}.", run_parts),
            _part(
                "claims",
                "Claims",
                CLAIMS_TEXT if papers else "No claims are recorded.",
                show_claims.section(papers, pictures),
            ),
            _part("benchmarks", "Benchmarks", BENCH_TEXT if benches else "No benchmarks are recorded.", bench_parts),
            _part(
                "faults",
                "Faults",
                FAULTS_TEXT if faults else "No fault campaign is recorded.",
                [show_results.faults(faults)] if faults else [],
            ),
        ),
        h("footer", h("p", f"From {asked} and {results}.", class_="where")),
    ]
    return to_html(_document(body, {**curves, **bench_curves}))


RUNS_TEXT = (
    "Runs of one task share their axes. A run's value is its last; a dotted level is what a simple model reaches on the "
    "same data. A curve that is noisy is drawn faintly, its running mean over a fiftieth of the run in full. "
    "A stroke on the axis of steps is an incident. Unfinished is what still runs, or ended without a summary."
)
CLAIMS_TEXT = (
    "Sentences of the papers, scaled down, each with a threshold set before the run. In the strips the large dot "
    "is what was measured, small ones its seeds, strokes the baseline; on the shaded side the claim holds. What fails stays."
)
BENCH_TEXT = (
    "Medians of interleaved rounds; the thin line over a bar runs from the lower to the upper quartile. A ratio is to the first "
    "of its case."
)
FAULTS_TEXT = (
    "Real runs, killed, starved of disk or damaged at random moments, then resumed; recovered means that the final state "
    "equals the undisturbed run's bit for bit."
)


def _document(body: list[Any], curves: dict[str, Any]) -> Element:
    style, script = (_read(HERE / name) for name in ("page.css", "page.js"))
    data = json.dumps(curves, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=policy),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("link", rel="icon", href="data:,"),
        h("title", "paperlab: runs, claims, benchmarks"),
        h("style", style),
    )
    scripts = [h("script", data, type="application/json", id="curves"), h("script", script)]
    return h("html", head, h("body", body, scripts), lang="en")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _part(identity: str, title: str, text: str, content: list[Element]) -> Element:
    return h("section", h("h2", title), h("p", text, class_="note"), content, id=identity, aria_label=title)


def _themes() -> Element:
    """Three radio buttons that need no script."""
    buttons = [
        h(
            "label",
            h("input", type="radio", name="theme", value=name, id=f"theme-{name}", checked=name == "auto"),
            name,
        )
        for name in ("auto", "light", "dark")
    ]
    return h("fieldset", h("legend", hidden("Colours")), buttons, class_="theme")


def _overview(found: list[runs.Run], papers: Any, benches: Any, faults: Any) -> Element:
    """What there is and how it stands; what fails is said first."""
    statuses = Counter(run.status for run in found)
    damaged = sum(bool(run.problems) for run in found)
    told = [f"{count} {status}" for status, count in sorted(statuses.items())]
    entries = [_entry("runs", "Runs", str(len(found)), told, [f"{damaged} with damaged files"] if damaged else [])]
    claims = [claim for paper in papers for claim in paper.claims]
    held = sum(paper.held for paper in papers)
    broken = _damaged(papers)
    fail = [f"{len(claims) - held} {'fails' if len(claims) - held == 1 else 'fail'}"] if held < len(claims) else []
    count = [str(held), h("small", f" of {len(claims)} hold")] if claims else "none"
    word = "paper" if len(papers) == 1 else "papers"
    entries.append(_entry("claims", "Claims", count, [f"{len(papers)} {word}"] if papers else [], [*fail, *broken]))
    aims = [aim for document in benches for aim in document.dictionaries("aims")]
    met = sum(aim.get("met") is True for aim in aims)
    missed = [f"{len(aims) - met} not met"] if met < len(aims) else []
    broken = _damaged(benches)
    shown = [str(met), h("small", f" of {len(aims)} aims met")] if aims else str(len(benches) or "none")
    rows = sum(len(document.dictionaries("rows")) for document in benches)
    entries.append(_entry("benchmarks", "Benchmarks", shown, [f"{rows} cases"] if rows else [], [*missed, *broken]))
    entries.append(_faults_entry(faults))
    return h("nav", h("ul", entries), aria_label="Overview")


def _damaged(documents: Any) -> list[str]:
    count = sum(bool(document.problems) for document in documents)
    return [f"{count} damaged {'file' if count == 1 else 'files'}"] if count else []


def _faults_entry(faults: Any) -> Element:
    if faults is None:
        return _entry("faults", "Faults", "none", [], [])
    rounds, passed = (faults.content.get(name) for name in ("rounds", "passed"))
    lost = rounds - passed if isinstance(rounds, int) and isinstance(passed, int) else 0
    count = [show_results.number(passed), h("small", f" of {show_results.number(rounds)} recovered")]
    return _entry("faults", "Faults", count, [], [*([f"{lost} lost"] if lost else []), *_damaged([faults])])


def _entry(target: str, title: str, count: Any, told: list[str], bad: list[str]) -> Element:
    badges = [h("p", h("span", text, class_="badge bad")) for text in bad[:3]]
    words = h("p", ", ".join(told)) if told else None
    return h("li", h("a", title, href=f"#{target}"), h("span", count, class_="count"), words, badges)

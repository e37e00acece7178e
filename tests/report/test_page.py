"""The page says what the files say, whatever state they are in, and holds nothing that is not its own."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from paperlab.report import __main__ as front
from paperlab.report import records, runs, show_claims
from paperlab.report.page import page
from tests.report import material

ROOT = Path(__file__).parents[2]


class Words(HTMLParser):
    """The tags of a page with their attributes, and the text that a reader sees."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = [tag]

    def handle_endtag(self, tag):
        self._inside = []

    def handle_data(self, data):
        if self._inside not in (["script"], ["style"]):
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


def made(root: Path, results: Path, out: Path) -> str:
    """The page of all runs under `root`."""
    return page(runs.collect([root]), results, made="Made today.", out=out, asked=str(root))


def test_every_run_and_every_claim_is_on_it(tmp_path):
    for seed, variant in enumerate(("", "scalar", "none")):
        material.run(tmp_path / "runs" / f"gla-{variant or 'default'}", variant, seed=seed)
    shown = Words(made(tmp_path / "runs", ROOT / "results", tmp_path / "report.html"))
    papers = records.papers(ROOT / "results")
    claims = [claim for paper in papers for claim in paper.claims]
    assert len(claims) >= 17
    assert all(claim["id"] in shown.text and claim["statement"] in shown.text for claim in claims)
    assert all(name in shown.text for name in ("gla-default", "gla-scalar", "gla-none", "19 632", "xz -9"))
    failed = [(paper.slug, claim) for paper in papers for claim in paper.claims if not claim["passed"]]
    links = {attributes.get("href") for tag, attributes in shown.tags if tag == "a"}
    assert {f"#{show_claims.identity(slug, claim)}" for slug, claim in failed} <= links
    assert f"{len(claims) - len(failed)} of {len(claims)} hold" in shown.text


def test_damaged_runs_are_named_and_the_others_stand(tmp_path):
    told = material.damaged(tmp_path / "runs")
    material.run(tmp_path / "runs" / "whole")
    material.odd(tmp_path / "runs")
    shown = Words(made(tmp_path / "runs", tmp_path, tmp_path / "report.html"))
    for name, words in told.items():
        assert name in shown.text, name
        assert words in shown.text, words
    assert f"{len(told)} with damaged files" in shown.text
    assert "2 000" not in shown.text
    assert "whole gla · complete · val bits per byte" in shown.text


def test_results_that_are_damaged_are_named(tmp_path):
    material.bench(tmp_path)
    material.write(tmp_path / "claims" / "odd.json", {"slug": "odd", "claims": [{"id": "1"}, 7, None]})
    material.write(tmp_path / "claims" / "none.json", {"slug": "none"})
    (tmp_path / "claims" / "half.json").write_text('{"slug"')
    (tmp_path / "faults.json").write_text("")
    shown = Words(made(tmp_path / "runs", tmp_path, tmp_path / "report.html"))
    for words in (
        "half.json is not JSON",
        "none.json lists no claims",
        "faults.json is empty",
        "no statement recorded",
    ):
        assert words in shown.text, words
    assert "0 of 1 hold" in shown.text


def test_aims_and_faults_that_failed_are_as_visible_as_the_others(tmp_path):
    material.bench(tmp_path)
    material.faults(tmp_path, lost=2)
    shown = Words(made(tmp_path / "runs", tmp_path, tmp_path / "report.html"))
    for words in (
        "not met",
        "1 of 2 aims met",
        "98 of 100 recovered",
        "2 lost",
        "28 of 30",
        "step 40 <differs>",
        "SIGKILL at a",
    ):
        assert words in shown.text, words
    assert shown.text.index("imports") < shown.text.index("our step over a jit written by hand")


HOSTILE = '"><script>alert(1)</script></script><img src=x onerror=alert(2)>&amp;\x00\ud800'


def test_what_is_written_in_the_files_stays_text(tmp_path):
    folder = material.run(tmp_path / "runs" / "x'><b>", "</script><script>alert(3)</script>")
    (folder / "samples.txt").write_bytes(HOSTILE.encode("utf-8", "surrogatepass"))
    lines = [{"step": s, f"loss{HOSTILE}": 1.0 + s, "loss": 2.0, "tokens": s} for s in range(9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    material.write(folder / "overrides.json", [{"date": HOSTILE, "overrides": {HOSTILE: HOSTILE}, "changed": HOSTILE}])
    claim = {"id": HOSTILE, "statement": HOSTILE, "threshold": HOSTILE, "details": {HOSTILE: {HOSTILE: [HOSTILE]}}}
    material.write(tmp_path / "claims" / "gla.json", {"claims": [claim]})
    text = made(tmp_path / "runs", tmp_path, tmp_path / "report.html")
    shown = Words(text)
    assert [tag for tag, _ in shown.tags].count("script") == 2
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert "<script>alert(1)</script>" in shown.text
    assert not re.search(r"[\x00-\x08\ud800-\udfff]", text)


def test_it_refers_to_nothing_outside(tmp_path):
    folder = material.run(tmp_path / "runs" / "one run")
    material.picture(folder / "curves.png")
    material.picture(folder / "gates.svg")
    material.picture(folder / "pictures" / "deep.svg")
    (folder / "broken.png").write_bytes(b"")
    shown = Words(made(tmp_path / "runs", ROOT / "results", tmp_path / "pages" / "report.html"))
    named = [
        (tag, a.get("src") or a.get("href") or "") for tag, a in shown.tags if tag in ("a", "img", "link", "script")
    ]
    loaded = [address for tag, address in named if tag != "a" and address]
    assert loaded, "pictures are on the page"
    assert all(address.startswith("data:") for address in loaded)
    linked = [address for tag, address in named if tag == "a" and not address.startswith("#")]
    assert linked == ["../runs/one%20run/curves.png"]
    assert "broken.png is damaged" in shown.text
    assert sum("svg+xml" in address for address in loaded) == 2


def test_the_same_files_give_the_same_page(tmp_path, monkeypatch):
    material.run(tmp_path / "runs" / "b", seed=1)
    material.run(tmp_path / "runs" / "a", seed=2)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    flags = [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'report.html'}"]
    assert front.main(flags) == 0
    first = (tmp_path / "report.html").read_bytes()
    assert front.main(flags) == 0
    assert (tmp_path / "report.html").read_bytes() == first
    assert b"Made 2023-11-14 22:13 UTC" in first


def test_named_work_directories_alone_are_shown(tmp_path, capsys):
    material.run(tmp_path / "runs" / "wanted")
    material.run(tmp_path / "runs" / "other")
    out = tmp_path / "new" / "report.html"
    assert front.main([str(tmp_path / "runs" / "wanted"), f"--out={out}"]) == 0
    assert ": 1 run, " in capsys.readouterr().out
    assert "other" not in Words(out.read_text()).text.split("From ")[0].split("Claims", 2)[1]


def wrong_requests(folder: Path) -> dict[str, tuple[list[str], int, str]]:
    """{name: (arguments, exit status, words of the one line)}."""
    (folder / "file").write_text("")
    (folder / "empty").mkdir()
    (folder / "good").mkdir()
    material.run(folder / "good" / "run")
    return {
        "no runs": ([f"--runs={folder / 'absent'}"], 2, "--runs: there is no folder"),
        "no results": ([f"--results={folder / 'absent'}"], 2, "--results: there is no folder"),
        "a file": ([str(folder / "file")], 2, "is no folder; name the work directory"),
        "no run in it": ([str(folder / "empty")], 2, "holds no run"),
        "out is a folder": ([str(folder / "good"), f"--out={folder}"], 1, "--out: cannot write"),
        "out under a file": ([str(folder / "good"), f"--out={folder / 'file' / 'x'}"], 1, "--out: cannot write"),
    }


def test_a_wrong_request_is_one_line(tmp_path, capsys):
    for name, (flags, status, words) in wrong_requests(tmp_path).items():
        assert front.main(flags) == status, name
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, name
        assert words in lines[0], name


@pytest.mark.parametrize(
    ("claim", "bound"),
    [
        ({"threshold": "<= 2e-05"}, ("<=", 2e-5)),
        ({"threshold": "<= 0.97 x baseline", "baseline": 10}, ("<=", 9.7)),
        ({"threshold": "> 1 x baseline", "baseline": -2.0}, (">", -2.0)),
        ({"threshold": "< 1 x baseline", "baseline": None}, ("", None)),
        ({"threshold": "about right"}, ("", None)),
        ({}, ("", None)),
    ],
)
def test_thresholds_are_read(claim, bound):
    relation, number = show_claims.bound_of(claim)
    assert (relation, number) == (bound[0], pytest.approx(bound[1]))


def test_a_real_run_is_shown(tmp_path, capsys):
    from paperlab.run import main
    from tests.test_run import TINY

    (tmp_path / "text").mkdir()
    for i in range(8):
        (tmp_path / "text" / f"{i}.txt").write_text(f"document {i} " + "abc " * (40 + 3 * i))
    flags = [*TINY, f"--config.data.path={tmp_path / 'text'}", "--config.train.steps=20", "--config.train.log_every=5"]
    assert main([*flags, f"--workdir={tmp_path / 'runs' / 'real'}"]) == 0
    [run] = runs.collect([tmp_path / "runs"])
    assert (run.status, run.steps, run.slug, run.problems) == ("complete", 20, "gla", [])
    assert run.headline[0] == "val_bits_per_byte"
    assert {"gzip9", "xz9", "bigram"} <= run.baselines().keys()
    assert front.main([f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'report.html'}"]) == 0
    shown = Words((tmp_path / "report.html").read_text()).text
    assert "real gla · complete · val bits per byte" in shown
    assert all(name in shown for name in ("best baseline", "Samples", "Configuration", "Parameters"))

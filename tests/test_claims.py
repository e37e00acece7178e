"""Claims are recorded, whatever comes out of them."""

import json
import types

import pytest

from paperlab import claims
from paperlab.evidence import Claim, Laboratory, Outcome, Threshold


def fails(lab):
    raise RuntimeError("no such luck")


def make(value, *, id="1", threshold=Threshold("<=", 1.0), run=None, device=""):
    return Claim(id, "a sentence", "section 1", run or (lambda lab: Outcome(value, 2.0, [value])), threshold, device)


@pytest.fixture
def paper(monkeypatch):
    """A paper `made_up` whose claims a test sets."""
    room = types.SimpleNamespace(CLAIMS=[])
    monkeypatch.setattr(claims, "papers_with_claims", lambda: ["made_up"])
    real = claims.importlib.import_module
    monkeypatch.setattr(
        claims.importlib,
        "import_module",
        lambda name, package=None: room if name == "paperlab.papers.made_up.claims" else real(name, package),
    )
    return room


def recorded(root):
    return {record["id"]: record for record in json.loads((root / "made_up.json").read_text())["claims"]}


def test_a_failed_a_broken_and_a_passed_claim_are_all_recorded(paper, tmp_path):
    paper.CLAIMS = [make(0.5), make(3.0, id="2.a"), make(0, id="2.b", run=fails), make(float("nan"), id="3")]
    assert claims.main(["made_up", f"--root={tmp_path}"]) == 0
    found = recorded(tmp_path)
    assert [found[name]["passed"] for name in ("1", "2.a", "2.b", "3")] == [True, False, False, False]
    assert "no such luck" in found["2.b"]["details"]["error"]
    assert found["3"]["value"] is None
    wanted = {"id", "statement", "source", "value", "baseline", "threshold", "passed", "per_seed"}
    assert wanted | {"seconds", "device", "commit", "dirty", "date"} <= set(found["1"])


def test_single_records_are_replaced_and_the_others_kept(paper, tmp_path):
    paper.CLAIMS = [make(0.5), make(3.0, id="2.a"), make(4.0, id="2.b")]
    claims.main(["made_up", f"--root={tmp_path}"])
    paper.CLAIMS = [make(0.7), make(0.9, id="2.a"), make(5.0, id="2.b")]
    claims.main(["made_up", f"--root={tmp_path}", "--only=2"])
    assert {name: r["value"] for name, r in recorded(tmp_path).items()} == {"1": 0.5, "2.a": 0.9, "2.b": 5.0}
    paper.CLAIMS = [make(0.7), make(0.8, id="2.a")]
    claims.main(["made_up", f"--root={tmp_path}", "--only=2.a"])
    assert {name: r["value"] for name, r in recorded(tmp_path).items()} == {"1": 0.5, "2.a": 0.8}


def test_a_claim_for_another_device_is_not_run_and_its_record_stays(paper, tmp_path):
    paper.CLAIMS = [make(0.5, device="H100")]
    claims.main(["made_up", f"--root={tmp_path}"])
    assert not (tmp_path / "made_up.json").exists()


def test_unknown_papers_and_claims_are_named(paper, tmp_path, capsys):
    assert claims.main(["made_upp"]) == 2
    assert "did you mean 'made_up'" in capsys.readouterr().err
    assert claims.main(["made_up", "--only=9", f"--root={tmp_path}"]) == 2
    assert "no claim '9'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("threshold", "value", "baseline", "holds"),
    [
        (Threshold("<=", 2.0), 2.0, None, True),
        (Threshold("<", 2.0), 2.0, None, False),
        (Threshold(">=", 0.5, of_baseline=True), 1.0, 2.0, True),
        (Threshold(">", 0.5, of_baseline=True), 1.0, 2.0, False),
        (Threshold("<=", 1.0), float("nan"), None, False),
        (Threshold(">=", 1.0), float("nan"), None, False),
    ],
)
def test_thresholds(threshold, value, baseline, holds):
    assert threshold.holds(value, baseline) is holds


def test_a_threshold_needs_what_it_speaks_of():
    with pytest.raises(ValueError, match="needs a baseline"):
        Threshold("<=", 1.0, of_baseline=True).holds(1.0, None)
    with pytest.raises(ValueError, match="use one of"):
        Threshold("==", 1.0)


def test_the_laboratory_makes_a_thing_once(tmp_path):
    made = []
    lab = Laboratory(tmp_path)
    assert [lab.once("a", lambda: made.append(1) or "x") for _ in range(3)] == ["x"] * 3
    assert made == [1]


def test_every_paper_has_claims_with_unique_ids():
    for slug in claims.papers_with_claims():
        ids = [claim.id for claim in claims.select(slug, [])]
        assert ids
        assert len(ids) == len(set(ids))

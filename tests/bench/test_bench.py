"""Benchmarks take turns, say what they found in one format, and run end to end; nothing here looks at a time."""

import json

import jax.numpy as jnp
import pytest

from paperlab.bench import overhead, record, timing
from paperlab.bench.__main__ import benchmarks, main
from paperlab.bench.record import Aim, Row, number

DOCUMENT = {"title", "date", "commit", "dirty", "device", "machine", "versions", "rows", "aims"}
AIM = {"bench", "what", "value", "aim", "comparison", "unit", "met"}


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    order = []
    calls = {name: lambda name=name: order.append(name) or jnp.zeros(()) for name in "abc"}
    samples = timing.interleaved(calls, rounds=3, warmup=2)
    assert "".join(order) == "abc" + "cbaabc" * 2
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_times_are_shared_among_what_a_call_does(monkeypatch):
    monkeypatch.setattr(timing, "timed", lambda call: call())
    assert timing.interleaved({"a": lambda: 12.0}, rounds=1, per_call=4) == {"a": [3.0]}


@pytest.mark.parametrize(("calls", "rounds"), [({}, 1), ({"a": int}, 0)])
def test_nothing_to_time_is_an_error(calls, rounds):
    with pytest.raises(ValueError, match="rounds"):
        timing.interleaved(calls, rounds=rounds)


def test_ratios_are_of_single_rounds():
    samples = {"a": [1.0, 20.0, 3.0], "b": [2.0, 10.0, 1.0]}
    assert timing.ratio(samples, "a", "b") == 2.0
    assert timing.difference(samples, "a", "b") == 2.0
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert timing.quartiles([7.0]) == (7.0, 7.0)


ROWS = [Row({"size": "small"}, {"x": [1.0, 2.0, 9.0]}, {"rate": 5.0, "broken": float("nan")}), Row({"size": "big"}, {})]


def test_a_row_is_recorded_with_median_and_quartiles():
    found = record.row_json("name", ROWS[0])
    assert found == {
        "bench": "name",
        "case": {"size": "small"},
        "ms": {"x": 2.0},
        "spread": {"x": [1.5, 5.5]},
        "rounds": 3,
        "rate": 5.0,
        "broken": None,
    }
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "comparison", "aim", "met"), [("rate", ">=", 5.0, True), ("rate", "<", 5.0, False), ("x", "<=", 2.0, True)]
)
def test_an_aim_says_whether_it_is_met(name, comparison, aim, met):
    found = record.aim_json("name", Aim("a rate", comparison, aim, "1/s", number(name, size="small")), ROWS)
    assert set(found) == AIM
    assert found["met"] is met


def test_an_aim_without_its_row_is_left_out():
    assert record.aim_json("name", Aim("a rate", "<", 1.0, "1/s", number("rate", size="huge")), ROWS) is None


def test_benchmarks_are_found_by_their_file_names(capsys):
    wanted = {"start", "compile", "step", "overhead", "checkpoint", "data", "generate"}
    assert wanted <= set(benchmarks())
    assert not {"timing", "record", "show", "subject", "plain"} & set(benchmarks())
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.startswith("checkpoint")


def test_an_unknown_benchmark_is_named_in_one_line(capsys):
    assert main(["stepp"]) == 2
    assert capsys.readouterr().err == "error: no benchmark is called 'stepp': did you mean 'step'?\n"


def test_two_benchmarks_end_to_end_in_one_document(tmp_path, capsys):
    file = tmp_path / "deep" / "found.json"
    assert main(["overhead", "step", "--quick", f"--json={file}", f"--root={tmp_path / 'root'}", "--debug"]) == 0
    found = json.loads(file.read_text())
    assert set(found) == DOCUMENT
    assert [row["bench"] for row in found["rows"]] == ["overhead", "step"]
    for row in found["rows"]:
        assert set(row["ms"]) == set(row["spread"])
        assert all(low <= row["ms"][label] <= high for label, (low, high) in row["spread"].items())
    assert set(found["rows"][0]["ms"]) == {"by hand", "step", "whole loop"}
    assert found["rows"][0]["largest_loss_difference"] < overhead.TOLERANCE
    assert found["aims"] == []
    assert not (tmp_path / "root").exists()
    out = capsys.readouterr().out
    assert "by hand" in out
    assert "tokens_per_second" in out


def test_without_json_each_goes_into_its_own_file(tmp_path, monkeypatch):
    module = benchmarks()["step"]
    rows = [Row({"size": "default"}, {"step": [1.0]}, {"tokens_per_second": 20_000.0})]
    monkeypatch.setattr(module, "rows", lambda options: rows)
    assert main(["step", f"--root={tmp_path}"]) == 0
    found = json.loads((tmp_path / "step.json").read_text())
    assert [aim["met"] for aim in found["aims"]] == [True]
    assert found["rows"][0]["case"] == {"size": "default"}


@pytest.mark.parametrize("loss", [2.001, float("nan"), float("inf")])
def test_another_mathematics_by_hand_is_refused(loss):
    assert overhead.same_loss(2.0, 2.00001, 3) == pytest.approx(5e-6)
    with pytest.raises(ValueError, match="not the same mathematics"):
        overhead.same_loss(2.0, loss, 3)

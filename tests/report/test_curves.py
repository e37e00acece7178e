"""Curves: what is drawn is what was measured, gaps and extremes among it."""

import re

import numpy as np
import pytest

from paperlab.report import numbers, runs, show_runs
from paperlab.report.charts import BOX, Curve, chart
from paperlab.report.elements import Element
from paperlab.report.page import Pictures
from paperlab.report.thinning import running_mean, thin
from tests.report import material


def series(values) -> runs.Series:
    values = np.asarray(values, np.float64)
    return np.arange(len(values), dtype=np.float64), values


def lines_of(figure: Element, view: str = "linear") -> list[str]:
    """The paths of the curves in one view."""
    found = next(e for e in figure.iter("div") if e.get("class") == f"view {view}")
    return [p.get("d") or "" for p in found.iter("path") if p.get("class") in ("line", "noise")]


def test_thinning_keeps_ends_extremes_and_gaps():
    random = np.random.default_rng(0)
    values = random.normal(size=100_000)
    values[31_234], values[77_001] = 50.0, -50.0
    values[60_000] = np.nan
    steps, kept = thin(series(values), 300)
    assert len(steps) <= 303
    assert (steps[0], steps[-1]) == (0, 99_999)
    assert {31_234, 77_001, 60_000} <= set(steps.tolist())
    np.testing.assert_array_equal(kept, values[steps.astype(int)])
    assert np.all(np.diff(steps) > 0)


def test_short_curves_are_not_thinned():
    whole = series([3.0, 2.0, np.nan, 1.0])
    assert thin(whole, 4) is whole


def test_a_schedule_is_not_smoothed_and_noise_is():
    assert running_mean(series(np.linspace(1, 0, 500))) is None
    noisy = np.random.default_rng(1).normal(5.0, 1.0, 2000)
    noisy[700:720] = np.nan
    found = running_mean(series(noisy))
    assert found is not None
    there = np.isfinite(noisy)
    np.testing.assert_array_equal(np.isfinite(found[1]), there)
    assert np.nanstd(found[1]) < 0.3
    k = 1000
    np.testing.assert_allclose(found[1][k], noisy[k - 20 : k + 21].mean(), rtol=1e-12)
    constant = np.where(np.arange(300) % 2, 1.0, 3.0)
    ends = running_mean(series(constant))
    assert ends is not None
    np.testing.assert_allclose(ends[1][0], constant[:4].mean(), rtol=1e-12)


def test_a_gap_breaks_the_line_and_a_lone_point_is_seen():
    values = [1.0, 2.0, np.nan, 4.0, np.nan, 2.0, 1.0]
    drawn = chart("c", "loss", [Curve("k", "run", series(values), "ink-0")])
    assert drawn is not None
    [path] = lines_of(drawn[0])
    assert path.count("M") == 3
    assert path.count("L") == 2
    dots = next(p.get("d") for p in drawn[0].iter("path") if p.get("class") == "dots")
    assert dots.count("M") == 5
    assert drawn[1] == {"k": [[0, 1, 2, 3, 4, 5, 6], [1, 2, None, 4, None, 2, 1]]}


def test_of_a_long_curve_only_lone_points_are_dots():
    values = np.linspace(1.0, 2.0, 40)
    values[[19, 21]] = np.nan
    drawn = chart("c", "loss", [Curve("k", "run", series(values), "ink-0")])
    assert drawn is not None
    dots = [p.get("d") or "" for p in drawn[0].iter("path") if p.get("class") == "dots"]
    assert [path.count("M") for path in dots] == [1, 1], "one in the linear view, one in the logarithmic"


def test_positions_are_those_of_the_values():
    drawn = chart("c", "loss", [Curve("k", "run", series([0.0, 10.0]), "ink-0")])
    assert drawn is not None
    [path] = lines_of(drawn[0])
    points = [tuple(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", path)]
    # Air of 4 % below and above: 0 stands at 0.4 / 10.8 of the height.
    assert points == [(0, round(BOX * (1 - 0.4 / 10.8))), (BOX, round(BOX * 0.4 / 10.8))]


def test_a_logarithmic_view_only_where_all_is_positive():
    steep = chart("c", "x", [Curve("k", "run", series([100.0, 10.0, 1.0]), "ink-0")])
    signed = chart("c", "x", [Curve("k", "run", series([1.0, -1.0]), "ink-0")])
    assert steep is not None
    assert signed is not None
    [path] = lines_of(steep[0], "log")
    heights = [int(y) for _, y in re.findall(r"(\d+),(\d+)", path)]
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=1)
    chosen = [e.get("value") for e in steep[0].iter("input") if e.get("checked") is not None]
    assert chosen == ["log"]
    assert not list(signed[0].iter("input"))


def test_nothing_finite_is_no_chart():
    assert chart("c", "x", [Curve("k", "run", series([np.nan, np.nan]), "ink-0")]) is None
    assert chart("c", "x", []) is None


def test_strange_values_in_metrics_are_gaps_or_left_out(tmp_path):
    material.odd(tmp_path)
    found = {run.name: run.series for run in runs.collect([tmp_path])}
    assert found["strange-types"] == {}
    assert found["nothing-finite"] == {}
    assert found["one-point"]["loss"][1].tolist() == [2.5]
    assert np.isnan(found["gaps"]["loss"][1]).sum() == 14
    assert found["huge"]["loss"][1][-1] == 1e300


def test_a_step_written_twice_counts_once():
    found = runs.series_of([{"step": 2, "loss": 9.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}])
    assert found["loss"][0].tolist() == [1, 2]
    assert found["loss"][1].tolist() == [3, 1]


def test_a_summary_older_than_the_metrics_is_not_the_last_word(tmp_path):
    folder = material.run(tmp_path / "run", steps=200)
    [run] = runs.collect([tmp_path])
    assert (run.status, run.headline[1]) == ("complete", run.summary["val_bits_per_byte"])
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 300, "val_bits_per_byte": 0.5}\n')
    [run] = runs.collect([tmp_path])
    assert (run.status, run.steps, run.headline) == ("unfinished", 300, ("val_bits_per_byte", 0.5))


def test_runs_of_one_name_are_told_apart(tmp_path):
    for place in ("a", "b"):
        material.run(tmp_path / place / "run", steps=10)
    assert [run.name for run in runs.collect([tmp_path])] == ["a/run", "b/run"]
    assert len(runs.collect([tmp_path, tmp_path / "a"])) == 2


def test_only_differing_fields_are_told(tmp_path):
    material.run(tmp_path / "a", steps=10, depth=2)
    material.run(tmp_path / "b", steps=10, depth=4)
    assert runs.differing(runs.collect([tmp_path])) == {"model.depth": [2, 4]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0"),
        (1234567, "1 234 567"),
        (3.14159, "3.142"),
        (0.00012345, "0.0001234"),
        (2.5e-6, "2.5·10⁻⁶"),
        (-1e-9, "\N{MINUS SIGN}1·10⁻⁹"),
        (123456.7, "123 457"),
        (float("nan"), "nan"),
        (10**400, "about 10^400"),
        (True, "True"),
    ],
)
def test_numbers_are_written_for_readers(value, text):
    assert numbers.number(value) == text.replace(" ", "\N{NARROW NO-BREAK SPACE}" if value != 10**400 else " ")


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (-3, 7e5, False), (1e-9, 2e-9, False), (0.9, 5.5, True), (1e-8, 1e3, True)]
)
def test_ticks_are_few_inside_and_told_apart(low, high, log):
    found = numbers.ticks(low, high, log=log)
    assert 2 <= len(found) <= 7
    assert all(low <= value <= high for value in found)
    assert len(set(numbers.tick_labels(found))) == len(found)


def test_baselines_are_levels_of_their_own_metric_alone(tmp_path):
    material.run(tmp_path / "judged", steps=400)
    material.write(tmp_path / "by-loss" / "config.json", material.config("by-loss"))
    (tmp_path / "by-loss" / "metrics.jsonl").write_text('{"step": 100, "loss": 9.0}\n{"step": 200, "loss": 1.0}\n')
    [section], _ = show_runs.section(runs.collect([tmp_path]), Pictures(tmp_path / "report.html"))
    levels = {}
    for figure in section.iter("figure"):
        heading = next(figure.iter("h4")).text
        levels[heading] = [p for p in figure.iter("path") if p.get("class") == "level"]
    assert levels["val bits per byte"], "xz and gzip stand beside the metric that they are of"
    assert levels["loss"] == []

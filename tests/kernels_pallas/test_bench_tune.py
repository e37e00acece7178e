"""Tuning: only right configurations are kept, and what was measured is found again."""

import json

import pytest

from kernels_pallas import configs, registry, tune
from kernels_pallas.bench import timing
from kernels_pallas.bench.subject import Subject
from tests.kernels_pallas import standin


@pytest.fixture(autouse=True)
def only_standin(monkeypatch):
    for name in list(registry.MODULES):
        monkeypatch.delitem(registry.MODULES, name)
    monkeypatch.setitem(registry.MODULES, "linear_scan", "tests.kernels_pallas.standin")


def test_wrong_and_refused_configurations_are_said_and_not_kept(capsys):
    subject = Subject(standin.OP, standin.SMALL[0], most_sets=1)
    found = standin.OP.configs(subject.case, "tpu")
    samples = tune.measured(subject, list(found), "interpret", "both", timing.QUICK)
    assert set(samples) == {"Config(block=8)", "Config(block=4)"}
    said = capsys.readouterr().out
    assert "Config(block=13): wrong: relative error" in said
    assert "Config(block=14): ValueError: block = 14" in said


def test_a_table_is_written_found_and_gone_on_with(tmp_path, monkeypatch):
    file = tmp_path / "tuned.json"
    assert tune.main(["--quick", f"--table={file}"]) == 0
    (row,) = json.loads(file.read_text())["cpu"]["linear_scan"]
    assert row["case"] == standin.SMALL[0] | {"pass": "both"}
    monkeypatch.setattr(configs, "TABLE", file)
    monkeypatch.setattr(configs, "table", configs.table.__wrapped__)
    assert configs.tuned("linear_scan", standin.SMALL[0], standin.Config())._asdict() == row["config"]
    monkeypatch.setattr(tune, "tuned", lambda *_, **__: pytest.fail("measured again"))
    assert tune.main(["--quick", f"--table={file}"]) == 0


def test_time_that_is_over_leaves_cases(tmp_path, capsys):
    assert tune.main(["--quick", f"--table={tmp_path / 'tuned.json'}", "--seconds=-1"]) == 3
    assert "1 cases left" in capsys.readouterr().out


def test_a_case_that_no_configuration_can_run_is_a_failure(monkeypatch, tmp_path):
    op = standin.OP._replace(configs=lambda case, platform: (standin.Config(14),))
    monkeypatch.setattr(standin, "OP", op)
    file = tmp_path / "tuned.json"
    assert tune.main(["--quick", f"--table={file}"]) == 1
    assert not file.exists()


def test_where_no_kernel_runs_nothing_is_tuned(tmp_path, capsys):
    file = tmp_path / "tuned.json"
    assert tune.main([f"--table={file}"]) == 0
    assert "no kernel runs here" in capsys.readouterr().out
    assert not file.exists()

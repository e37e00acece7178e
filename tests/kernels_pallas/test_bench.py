"""The benchmark of the kernels: what is wrong has no time, what is recorded can be read, what is missing is said."""

import json
from functools import partial
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import platforms, registry
from kernels_pallas.bench import __main__ as command
from kernels_pallas.bench import check, device, measure, record, timing, xla
from kernels_pallas.bench.subject import Subject
from kernels_pallas.bench.torch_side import TorchPeers
from kernels_pallas.registry import operations
from paperlab.report import records, show_results
from tests.kernels_pallas import standin

CEILINGS = device.Ceilings(1e10, 1e11, 0.01)
SETTING = measure.Setting(CEILINGS, timing.QUICK, narrow=False, most_sets=1)


@pytest.fixture
def only_standin(monkeypatch):
    for name in list(registry.MODULES):
        monkeypatch.delitem(registry.MODULES, name)
    monkeypatch.setitem(registry.MODULES, "linear_scan", "tests.kernels_pallas.standin")


def shifted(*arrays, impl="auto", config=None):
    """Right but for the chunked form."""
    h, last = standin.run(*arrays, impl=impl)
    return (h + 0.1, last) if impl == "chunked" else (h, last)


def unfinished(*arrays, impl="auto", config=None):
    """Right results, and a gradient of the chunked form that is twice what it should be."""
    h, last = standin.run(*arrays, impl=impl)
    return (2 * h - jax.lax.stop_gradient(h), last) if impl == "chunked" else (h, last)


def test_a_quick_run_is_recorded_and_reported(only_standin, tmp_path, capsys):
    file = tmp_path / "bench" / "kernels.json"
    assert command.main(["--quick", f"--json={file}"]) == 0
    said = capsys.readouterr().out
    assert "no GPU or TPU that kernels are for" in said
    document = json.loads(file.read_text())
    assert document["device"] == "cpu"
    assert "mean nothing" in document["title"]
    assert [row["case"]["pass"] for row in document["rows"]] == ["forward", "both"] * 2
    for row in document["rows"]:
        assert set(row["ms"]) == {"chunked", "lax.scan", "lax.associative_scan"}
        assert set(row["ratio_to"]) == {"lax.scan", "lax.associative_scan"}
        assert max(row["errors"].values()) < check.limit(row["case"])
        assert row["floor_ms"] > 0
        assert row["refused"] == {}
    sections, _ = show_results.benches(records.benches(tmp_path))
    assert "lax.associative" in " ".join(sections[0].itertext())


def test_wrong_numbers_have_no_time():
    op = standin.OP._replace(run=shifted)
    for row in measure.rows(op, standin.SMALL[0], SETTING):
        assert "chunked" not in row["ms"]
        assert row["refused"]["chunked"].startswith("wrong: relative error")
        assert row["measured"] == "lax.scan"
        assert command.faults(row)


def test_wrong_gradients_have_no_time():
    forward, both = measure.rows(standin.OP._replace(run=unfinished), standin.SMALL[0], SETTING)
    assert "chunked" in forward["ms"]
    assert "chunked" not in both["ms"]
    assert both["errors"]["chunked"] > 0.1


def test_not_a_number_is_never_right():
    assert check.error(np.array([1.0, np.nan]), np.array([1.0, 1.0])) == float("inf")
    assert check.error(np.zeros(3), np.zeros(3)) == 0


def test_a_kernel_that_says_what_it_does_not_take_is_no_fault():
    row = {"refused": {"kernel": "ValueError: gla: impl='pallas': K = 96 is no multiple of 64; use impl='auto'"}}
    assert command.faults(row) == []
    assert command.faults({"refused": {"kernel": "XlaRuntimeError: INTERNAL: illegal memory access"}})
    assert command.faults({"refused": {"FLA chunk_gla": "RuntimeError: no driver"}}) == []


def test_the_checked_part_is_what_does_not_depend_on_the_rest():
    subject = Subject(standin.OP, standin.OP.cases[0], most_sets=1)
    assert [None if x is None else x.shape for x in subject.part] == [(1, 256, 16), (1, 256, 16), None]
    assert subject.checked == [(1, 256, 16), None]  # the last state depends on steps that are left out
    whole, part = (subject.cotangents(part=part)[0] for part in (False, True))
    assert bool((part[:1, :256] != 0).all())
    assert float(jnp.abs(part[1:]).sum() + jnp.abs(part[:, 256:]).sum()) == 0
    assert bool((whole != 0).all())
    right = check.wanted(subject)
    program = xla.compiled(xla.implementation(standin.OP, "chunked", "chunked"), subject.arrays, "both")
    results, gradients = xla.evaluate(program, subject, gradients=True)
    assert check.results_error(results, right) < 1e-5
    assert check.gradients_error(gradients, right) < 1e-5


def test_input_sets_are_more_than_a_cache_holds():
    assert timing.sets(300e6) == 1
    assert timing.sets(90e6) == 3
    assert timing.sets(1) == 8
    subject = Subject(standin.OP, standin.SMALL[0], most_sets=3)
    first, second, _ = (arrays[0] for arrays in subject.sets)
    assert not np.array_equal(first, second)


def test_calls_take_turns_and_a_slow_one_has_fewer_rounds(monkeypatch):
    clock = count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    now, order = [0.0], []

    def call(label, seconds, _):
        order.append((next(clock), label))
        now[0] += seconds

    calls = {"slow": partial(call, "slow", 10.0), "fast": partial(call, "fast", 0.02)}
    samples = timing.interleaved(calls, timing.Plan(rounds=5, seconds=4.0), lambda x: x)
    assert {label: len(values) for label, values in samples.items()} == {"slow": 3, "fast": 5}
    assert samples["slow"] == pytest.approx([1e4] * 3)
    assert [label for _, label in order[-8:]] == ["slow", "fast", "slow", "fast", "slow", "fast", "fast", "fast"]


def test_rows_of_another_device_are_not_mixed_in(only_standin, tmp_path):
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps({"device": "NVIDIA H100 80GB HBM3", "rows": []}))
    assert command.main(["--quick", "--resume", f"--json={file}"]) == 2


def test_a_run_goes_on_where_one_stopped(only_standin, tmp_path, monkeypatch, capsys):
    file = tmp_path / "kernels.json"
    assert command.main(["--quick", f"--json={file}", "--seconds=-1"]) == 3
    assert "2 of 2 cases left" in capsys.readouterr().out
    assert command.main(["--quick", f"--json={file}", "--resume"]) == 0
    assert len(record.read_rows(file)) == 4
    monkeypatch.setattr(measure, "rows", lambda *_: pytest.fail("measured again"))
    assert command.main(["--quick", f"--json={file}", "--resume"]) == 0
    assert len(record.read_rows(file)) == 4


def test_an_unknown_operation_is_named(capsys):
    assert command.main(["linear_scam"]) == 2
    assert "did you mean 'linear_scan'?" in capsys.readouterr().err


@pytest.mark.parametrize("op", operations(), ids=lambda op: op.name)
def test_every_operation_can_be_measured(op):
    subject = Subject(op, op.small[1], most_sets=1)
    contenders = [xla.implementation(op, "chunked", "chunked"), *xla.others(op.name, foreign=False)]
    found = measure.sift(contenders, subject, "forward", check.wanted(subject, gradients=False))
    assert found.refused == {}
    row = measure.made(subject, "forward", {label: [1.0] for label in found.calls}, found, CEILINGS, None)
    assert row["measured"] == "chunked"
    assert row["ratio_to_floor"] > 0


def test_on_a_device_its_kernels_come_first():
    gru = registry.operation("newton_gru")
    with platforms.assume("hopper"):
        labels = [contender.label for contender in xla.own(Subject(gru, gru.small[0]))]
    assert labels == ["kernel", "chunked", "lax.scan", "kernel step by step"]


@pytest.mark.parametrize("name", ["newton_gru", "newton_lstm"])
def test_the_cell_step_by_step_is_compared_forward(name):
    op = registry.operation(name)
    subject = Subject(op, op.small[2], most_sets=1)
    right = check.wanted(subject, gradients=False)
    found = measure.sift(xla.KERNELS[name], subject, "forward", right)
    assert found.errors["kernel step by step"] < 1e-4
    refused = measure.sift(xla.KERNELS[name], subject, "both", right).refused
    assert refused == {"kernel step by step": "has no gradients"}


def peers_of(tmp_path, script, seconds=20.0):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return TorchPeers(str(python), seconds=seconds)


@pytest.mark.parametrize(
    ("script", "seconds", "reason"),
    [
        ("echo 'Segmentation fault' >&2; exit 7", 20.0, "its process ended with status 7: Segmentation fault"),
        ("exec sleep 60", 0.3, "gave no answer in 0 s"),
        ('while read line; do echo \'{"refused": "why not"}\'; done', 20.0, "why not"),
    ],
)
def test_a_peer_that_does_not_answer_is_recorded_and_the_next_is_asked(tmp_path, script, seconds, reason):
    subject = Subject(standin.OP, standin.SMALL[0], most_sets=1)
    with peers_of(tmp_path, script, seconds) as peers:
        for _ in range(2):
            told = peers.measure(subject, "FLA chunk_hgrn", "both", timing.QUICK)
            assert told == {"refused": reason}


def test_a_process_that_ended_is_started_again(tmp_path):
    flag = tmp_path / "flag"
    answers = 'while read line; do echo \'{"refused": "now"}\'; done'
    subject = Subject(standin.OP, standin.SMALL[0], most_sets=1)
    with peers_of(tmp_path, f"if [ -e {flag} ]; then {answers}; else touch {flag}; exit 7; fi") as peers:
        told = [peers.measure(subject, "FLA chunk_hgrn", "both", timing.QUICK)["refused"] for _ in range(2)]
    assert told == ["its process ended with status 7: nothing said", "now"]


def test_without_pytorch_its_peers_say_so():
    subject = Subject(standin.OP, standin.SMALL[1], most_sets=1)
    with TorchPeers() as peers:
        told = {
            label: peers.measure(subject, label, "forward", timing.QUICK) for label, _ in peers.labels("linear_scan")
        }
    assert len(told) == 4
    assert all("cannot be imported" in answer["refused"] or "ms" in answer for answer in told.values())


def test_what_times_cannot_be_is_null(tmp_path):
    file = tmp_path / "x.json"
    record.write(file, {"a": float("nan"), "b": [1.23456789, 3]})
    assert json.loads(file.read_text()) == {"a": None, "b": [1.23457, 3]}

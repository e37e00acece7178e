"""The runner of known answers: it finds what is wrong, and what is missing."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import __main__ as command
from tests.golden.cases import read
from tests.golden.compare import check, difference

ARRAYS = {"x": np.arange(3.0, dtype=np.float32), "w": np.float32(2), "y_1": np.array([0, 2, 4], np.float32)}
ENTRY = {
    "kind": "scale",
    "options": {"power": 1},
    "inputs": ["x"],
    "params": ["w"],
    "outputs": {"y_1": {"atol": 1e-3, "rtol": 0.0}},
    "roles": {"y": "y_1"},
    "licence": "own",
}


def scale(kind, options, inputs, params):
    if kind != "scale":
        raise ValueError(f"unknown kind {kind!r}\nand more")
    return {"y": params["w"] ** options["power"] * inputs["x"], "spare": None}


@pytest.fixture
def write(tmp_path):
    def write(entry: dict, arrays: dict = ARRAYS):
        (tmp_path / "toy").mkdir(exist_ok=True)
        np.savez(tmp_path / "toy" / "a.npz", **arrays)
        (tmp_path / "toy" / "cases.json").write_text(json.dumps({"a.npz": entry}))
        return tmp_path

    return write


def problems(root, run=scale) -> list[list[str]]:
    return [check(case, run) for case in read(root, "toy")]


def test_right_answers_pass(write):
    assert problems(write(ENTRY)) == [[]]


@pytest.mark.parametrize("wrong", [np.array([0, 2, 4.1], np.float32), np.zeros(2, np.float32), np.full(3, np.nan)])
def test_wrong_answers_fail(write, wrong):
    (found,) = problems(write(ENTRY, ARRAYS | {"y_1": wrong}))
    assert len(found) == 1


def test_missing_outputs_and_unknown_kinds_fail_in_one_line(write):
    two = ENTRY | {"outputs": ENTRY["outputs"] | {"w": {"atol": 0, "rtol": 0}}}
    assert problems(write(two)) == [["w: missing"]]
    assert problems(write(ENTRY | {"kind": "shift"})) == [["ValueError: unknown kind 'shift'"]]


def test_subcases_inherit_and_tables_are_left_out(write):
    square = {"options": {"power": 2}, "outputs": {"y_2": {"atol": 0, "rtol": 0}}, "roles": {"y": "y_2"}}
    bundle = {k: v for k, v in ENTRY.items() if k not in ("outputs", "roles")} | {"kind": "wrapper"}
    bundle["subcases"] = {
        "one": {"kind": "scale", "outputs": ENTRY["outputs"], "roles": ENTRY["roles"]},
        "two": {"kind": "scale"} | square,
        "table": {"kind": "scale", "reference": True},
    }
    root = write(bundle, ARRAYS | {"y_2": np.array([0, 4, 8], np.float32)})
    assert [case.name for case in read(root, "toy")] == ["a.npz:one", "a.npz:two"]
    assert problems(root) == [[], []]
    assert problems(write(ENTRY | {"reference": True})) == []


def test_float64_arrays_get_64_bit_mode(write):
    def dtype(kind, options, inputs, params):
        return {"y": jnp.asarray(inputs["x"]) * 2 + (jnp.asarray(inputs["x"]).dtype == jnp.float64)}

    assert problems(write(ENTRY, ARRAYS | {"y_1": np.array([0, 2, 4], np.float64)}), dtype) == [[]]
    wide = ARRAYS | {"x": ARRAYS["x"].astype(np.float64), "y_1": np.array([1, 3, 5.0])}
    assert problems(write(ENTRY, wide), dtype) == [[]]


def test_free_phases_are_not_compared():
    v = np.array([[1, 2j], [3, 4]])
    assert difference(-v, v, compare="abs") is None
    assert difference(v * [1j, -1], v, atol=1e-12, compare="column_projectors") is None
    assert difference(v * [1j, -1], v, atol=1e-12, compare="row_projectors") is not None
    assert difference(v * np.array([[1j], [-1]]), v, atol=1e-12, compare="row_projectors") is None
    assert difference(v, v.real, atol=1e-12) is not None


def test_command_line(write, capsys):
    root = str(write(ENTRY))
    assert command.main([f"--root={root}"]) == 0  # a paper without a room may lack its adapter
    assert command.main([f"--root={root}", "--slug=toy"]) == 1
    assert "no adapter tests/golden/adapters/toy.py" in capsys.readouterr().out
    assert command.main([f"--root={root}", "--slug=gla"]) == 2
    assert command.main(["--slug=gla"]) == 0
    assert "0 failures" in capsys.readouterr().out

"""The one command for GPU machines: its steps, their limits, what is gone on with, what is carried home."""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    module = script("gpu")
    seen = {"platform": "cpu", "device": "cpu", "smi": "", "versions": {"jax": "0"}}
    monkeypatch.setattr(module, "SANITY", f"print({json.dumps(json.dumps(seen))})")
    monkeypatch.setattr(module, "CLAIMS", "print()")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "environment", lambda folder: {})
    monkeypatch.setattr(module, "LEAST", 0.0)
    module.codes = dict.fromkeys(module.STEPS, "pass")
    real = module.step

    def step(name, place, end, ops, state):
        asked = real(name, place, end, ops, state)
        assert asked.command[0] == sys.executable
        return module.Step(name, [sys.executable, "-S", "-c", module.codes[name]], min(asked.seconds, 60))

    monkeypatch.setattr(module, "step", step)
    return module


def statuses(folder):
    state = json.loads((folder / "build" / "gpu" / "results" / "gpu.json").read_text())
    return {name: done["status"] for name, done in state["steps"].items()}


def test_without_a_gpu_nothing_is_measured_and_nothing_written(gpu, tmp_path, capsys):
    assert gpu.main([]) == 1
    assert list(tmp_path.iterdir()) == []
    assert "no GPU: JAX sees only cpu. Nothing was measured." in capsys.readouterr().out


def test_steps_are_run_once_and_what_is_left_is_gone_on_with(gpu, tmp_path, capsys):
    gpu.codes["bench"] = "print('half'); raise SystemExit(3)"
    assert gpu.main(["--quick"]) == 3
    assert statuses(tmp_path) == dict.fromkeys(gpu.STEPS, "done") | {"bench": "left"}
    assert "no GPU: every step is tried on the CPU" in capsys.readouterr().out
    gpu.codes = dict.fromkeys(gpu.STEPS, "raise SystemExit(1)") | {"bench": "print('whole')"}
    assert gpu.main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert "== bench\nwhole" in said
    assert "== golden" not in said


def test_a_step_that_fails_is_a_failure_and_the_others_are_run(gpu, tmp_path):
    gpu.codes["golden"] = "raise SystemExit(1)"
    assert gpu.main(["--quick"]) == 1
    assert statuses(tmp_path) == dict.fromkeys(gpu.STEPS, "done") | {"golden": "failed"}


def test_other_sources_start_anew(gpu, tmp_path, monkeypatch):
    gpu.codes["golden"] = "raise SystemExit(1)"
    assert gpu.main(["--quick"]) == 1
    gpu.codes["golden"] = "pass"
    assert gpu.main(["--quick"]) == 1
    monkeypatch.setattr(gpu, "fingerprint", lambda: "another")
    assert gpu.main(["--quick"]) == 0


def test_a_step_ends_with_its_time(gpu, tmp_path):
    place = gpu.Place(tmp_path, {}, True)
    code = "import time; print('begun', flush=True); time.sleep(60)"
    done = gpu.performed(gpu.Step("x", [sys.executable, "-S", "-c", code], 1.0), place, gpu.time.monotonic() + 100)
    assert done["status"] == "left"
    assert done["said"] == "begun\nended after 1 s"
    late = gpu.performed(gpu.Step("x", [sys.executable, "-c", "1"], 1.0), place, gpu.time.monotonic() - 1)
    assert late["said"] == "no time left"


def test_an_unknown_step_is_named(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["benhc"])
    assert "no step is called 'benhc'" in capsys.readouterr().err


def test_commands_of_the_steps_write_where_reports_look(tmp_path):
    module = script("gpu")
    state = {"sanity": {"device": "NVIDIA H100 80GB HBM3"}, "steps": {"bench": {"status": "left"}}}
    place = module.Place(tmp_path, {}, False)
    end = module.time.monotonic() + 540
    bench = module.step("bench", place, end, ["gla"], state).command
    assert f"--json={tmp_path}/results/bench/kernels-nvidia-h100-80gb-hbm3.json" in bench
    assert {"gla", "--peers", "--resume"} <= set(bench)
    assert "--resume" not in module.step("check", place, end, [], state).command
    assert f"--table={tmp_path}/kernels_pallas/tuned.json" in module.step("tune", place, end, [], state).command


def test_results_are_carried_home(gpu, tmp_path, monkeypatch):
    out, home = tmp_path / "out", tmp_path / "home"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    assert gpu.main(["--quick"]) == 0
    monkeypatch.setattr(gpu, "ROOT", home)
    assert gpu.main([f"--take={out / 'results.tar.gz'}"]) == 0
    assert json.loads((home / "results" / "gpu.json").read_text())["steps"]["claims"]["status"] == "done"


@pytest.mark.parametrize("name", ["results/../../x", "kernels_pallas/compat.py", "Makefile"])
def test_nothing_else_is_taken(gpu, tmp_path, name):
    file = tmp_path / "results.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="which is no result"):
        gpu.take(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.tar.gz"]


def test_wheels_are_pinned():
    module = script("wheels")
    wanted = module.wanted()
    assert {"fla-core==0.6.0", "jax-linear-attention==0.1.0"} <= set(wanted)
    assert all(requirement.count("==") == 1 for requirement in wanted)
    assert {"--no-deps", "--only-binary=:all:"} <= set(module.command(Path("x")))

"""What a run says about its devices."""

import jax
import pytest

from paperlab.devices import describe, idle_accelerator


def test_names_platform_count_processes_and_version():
    line = describe()
    assert f"{len(jax.devices())} x " in line
    assert f"[{jax.default_backend()}]" in line
    assert "1 process" in line
    assert jax.__version__ in line


@pytest.mark.parametrize(
    ("node", "environ", "backend", "asked_for", "expected"),
    [
        ("nvidia0", {}, "cpu", "", "make setup DEVICE=cuda13"),
        ("accel0", {}, "cpu", "", "make setup DEVICE=tpu"),
        ("null", {"TPU_ACCELERATOR_TYPE": "v5p-8"}, "cpu", "", "make setup DEVICE=tpu"),
        ("nvidia0", {}, "gpu", "", ""),
        ("nvidia0", {}, "cpu", "cpu", ""),
        ("nvidia0", {"CUDA_VISIBLE_DEVICES": "-1"}, "cpu", "", ""),
        ("nvidiactl", {}, "cpu", "", ""),
    ],
)
def test_says_when_an_accelerator_lies_idle(tmp_path, monkeypatch, node, environ, backend, asked_for, expected):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / node).touch()
    sentence = idle_accelerator(backend, asked_for, environ, tmp_path)
    assert sentence.endswith(expected)
    assert bool(sentence) == bool(expected)

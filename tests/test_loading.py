"""From Python as from the command line: train, resume, load, and read what a run left behind."""

import json

import jax
import matplotlib
import numpy as np
import pytest

import paperlab
from paperlab.config import load_experiment
from paperlab.errors import ConfigError


def tiny(tmp_path, steps=3):
    """The default experiment at a size that trains in a moment, on six small files."""
    (tmp_path / "text").mkdir(exist_ok=True)
    for i in range(6):
        (tmp_path / "text" / f"{i}.txt").write_text("".join(f"{i}:{j} " for j in range(100)))
    config = load_experiment("experiments/gla.py")
    config.model.update(width=16, depth=1, unroll=1)
    config.mixers.gla.short_conv = False
    config.data.update(path=str(tmp_path / "text"), validation_share=0.5, sequence_length=16, batch_size=8)
    config.train.update(steps=steps, checkpoint_every=0, log_every=1)
    config.mesh.data = 1
    return config


def test_train_resume_and_load_give_one_run(tmp_path, capsys):
    backend = matplotlib.get_backend()
    matplotlib.use("svg")  # a notebook's own
    whole = paperlab.train(tiny(tmp_path, 3), tmp_path / "whole")
    assert matplotlib.get_backend() == "svg", (
        "training must leave the backend alone: pictures after it would not be shown"
    )
    matplotlib.use(backend)
    paperlab.train(tiny(tmp_path, 2), tmp_path / "cut")
    capsys.readouterr()
    cut = paperlab.train(tiny(tmp_path, 3), tmp_path / "cut")
    assert "resumed from step 2" in capsys.readouterr().out
    assert cut.step == whole.step == 3
    loaded = paperlab.load(tmp_path / "whole")
    assert jax.tree.structure(whole.params) == jax.tree.structure(loaded.params)
    for ours, theirs in zip(jax.tree.leaves(whole.params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [line["step"] for line in loaded.metrics if "loss" in line] == [1, 2, 3]
    assert loaded.summary["steps"] == 3
    assert "bigram_bits_per_byte" in loaded.summary["baselines"]
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("def")) == "def"


def test_a_run_without_metrics_or_summary_is_still_loaded(tmp_path):
    run = paperlab.train(tiny(tmp_path, 1), tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "summary.json").unlink()
    assert run.metrics == []
    assert run.summary == {}
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"steps": 1})[:-3])
    with pytest.raises(ConfigError, match=r"summary\.json cannot be read"):
        _ = run.summary


def test_what_cannot_be_trained_is_refused(tmp_path):
    config = tiny(tmp_path)
    config.program = "papers.gla.numerics"
    with pytest.raises(ConfigError, match="program"):
        paperlab.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    paperlab.train(tiny(tmp_path, 1), tmp_path / "run")
    other = tiny(tmp_path, 1)
    other.model.width = 32
    with pytest.raises(ConfigError, match="another configuration"):
        paperlab.train(other, tmp_path / "run")

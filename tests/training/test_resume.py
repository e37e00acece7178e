"""Runs end to end: stop anywhere and go on, bit for bit; what the work directory holds; signals; NaN."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from paperlab.errors import ConfigError
from paperlab.training import setup
from paperlab.training.checkpoint import all_steps, restore
from paperlab.training.evaluation import Evaluators
from paperlab.training.loop import train
from paperlab.training.metrics import NonFiniteError
from paperlab.training.writers import read
from tests.training.tiny_task import TinyTask, draw, tiny_config


class Killed(BaseException):
    """Stands for kill -9: nothing of the trainer catches it, nothing is saved after it."""


def stop_at(step, how):
    def on_step(now, _):
        if now == step:
            how()

    return on_step


def kill():
    raise Killed


def final_state(workdir, config, step=6):
    ready = setup.prepare(config, TinyTask())
    return restore(workdir / "checkpoints" / str(step), ready.shapes).tree


def assert_same(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_array_equal(np.asarray(g), np.asarray(w)), got, want)


EMA = {"train__ema_decay": 0.9}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: (work directory, summary, the last state)."""
    workdir = tmp_path_factory.mktemp("whole")
    summary = train(tiny_config(**EMA), workdir, TinyTask())
    return workdir, summary, final_state(workdir, tiny_config(**EMA))


def without_times(workdir):
    timed = ("tokens_per_second", "steps_per_second", "seconds", "data_wait")
    return [{k: v for k, v in line.items() if k not in timed} for line in read(workdir / "metrics.jsonl")]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, whole, stop):
    with pytest.raises(Killed):
        train(tiny_config(**EMA), tmp_path, TinyTask(), on_step=stop_at(stop, kill))
    summary = train(tiny_config(**EMA), tmp_path, TinyTask())
    got = final_state(tmp_path, tiny_config(**EMA))
    assert_same(got, whole[2])
    assert int(got.step) == int(got.data_index) == 6
    assert without_times(tmp_path) == without_times(whole[0])
    assert summary["val_loss"] == whole[1]["val_loss"]


def test_lines_that_a_lost_part_of_a_run_wrote_are_dropped(tmp_path):
    config = tiny_config(train__log_every=1, train__checkpoint_every=3)
    with pytest.raises(Killed):
        train(config, tmp_path, TinyTask(), on_step=stop_at(6, kill))
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4, 5]
    train(config, tmp_path, TinyTask())
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl") if "val_loss" in line] == [4, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_finishes_the_step_and_saves(tmp_path, whole, number):
    before = signal.getsignal(number)
    summary = train(tiny_config(**EMA), tmp_path, TinyTask(), on_step=stop_at(3, lambda: os.kill(os.getpid(), number)))
    assert summary["status"] == "interrupted"
    assert summary["steps"] == 3
    assert signal.getsignal(number) is before
    assert all_steps(tmp_path / "checkpoints") == [2, 3]
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"
    assert train(tiny_config(**EMA), tmp_path, TinyTask())["status"] == "complete"
    assert_same(final_state(tmp_path, tiny_config(**EMA)), whole[2])
    assert without_times(tmp_path) == without_times(whole[0])


def test_resumes_on_another_mesh(tmp_path, whole):
    with pytest.raises(Killed):
        train(tiny_config(**EMA), tmp_path, TinyTask(), on_step=stop_at(5, kill))
    other = tiny_config(**EMA, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    summary = train(other, tmp_path, TinyTask())
    assert np.isclose(summary["val_loss"], whole[1]["val_loss"], rtol=1e-4)
    got = final_state(tmp_path, tiny_config(**EMA))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-5), got, whole[2])


def test_damaged_newest_checkpoint_costs_only_its_steps(tmp_path, whole, capsys):
    with pytest.raises(Killed):
        train(tiny_config(**EMA), tmp_path, TinyTask(), on_step=stop_at(5, kill))
    (tmp_path / "checkpoints" / "4" / "metadata" / "metadata").write_text("")
    train(tiny_config(**EMA), tmp_path, TinyTask())
    lines = capsys.readouterr().out.splitlines()
    assert sum("checkpoints/4 is damaged" in line for line in lines) == 1
    assert "resumed from step 2" in lines
    assert_same(final_state(tmp_path, tiny_config(**EMA)), whole[2])


def test_work_directory_of_a_finished_run(whole):
    workdir, summary, state = whole
    names = {path.name for path in workdir.iterdir()}
    assert {"parameters.txt", "metrics.jsonl", "curves.png", "checkpoints", "summary.json", "shown.txt"} <= names
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert {"status", "steps", "seconds", "val_loss", "val_root", "baseline", "shown", "devices", "versions"} <= set(
        summary
    )
    assert summary["tokens_per_second"] > 0
    assert summary["train"]["loss"] > 0
    assert [line["step"] for line in without_times(workdir) if "loss" in line] == [2, 4, 6]
    assert int(state.state["seen"]) == 48
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_run_is_left_as_it_is(whole):
    workdir, summary, _ = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    again = train(tiny_config(**EMA), workdir, TinyTask())
    assert again["val_loss"] == summary["val_loss"]
    assert again["train"] == summary["train"]
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_evaluation_alone_writes_nothing(whole):
    workdir, summary, _ = whole
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    found = train(tiny_config(**EMA), workdir, TinyTask(), eval_only=True)
    assert found["val_loss"] == summary["val_loss"]
    assert found["status"] == "evaluated"
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def test_evaluation_alone_needs_a_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="has no good checkpoint"):
        train(tiny_config(), tmp_path, TinyTask(), eval_only=True)


def test_starts_from_the_weights_of_another_run(tmp_path, whole):
    seen = []
    config = tiny_config(init_from=str(whole[0]), optim__lr=0.0, train__steps=1)
    train(config, tmp_path, TinyTask(), on_step=lambda step, state: seen.append(jax.device_get(state.params)))
    assert_same(seen[0], whole[2].ema)


class PoisonedTask(TinyTask):
    """The batch of step 5 holds a NaN."""

    def data(self, split, process_index=0, process_count=1):
        def poison(index, batch):
            bad = split == "train" and index == 4
            return {**batch, "y": batch["y"] * (np.nan if bad else 1)}

        return super().data(split, process_index, process_count).map_with_index(poison)


def test_nan_stops_with_its_step_and_is_never_saved(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 5: loss nan .* the last checkpoint is of step 4"):
        train(tiny_config(), tmp_path, PoisonedTask())
    assert all_steps(tmp_path / "checkpoints") == [2, 4]
    assert all(np.isfinite(line["loss"]) for line in read(tmp_path / "metrics.jsonl") if "loss" in line)


def test_nan_at_a_checkpoint_step_is_not_saved(tmp_path):
    with pytest.raises(NonFiniteError, match="step 5"):
        train(tiny_config(train__checkpoint_every=5), tmp_path, PoisonedTask())
    assert all_steps(tmp_path / "checkpoints") == []


@pytest.mark.parametrize(
    ("metric", "told"), [("val_los", "did you mean 'val_loss'"), ("q", "there are val_loss, val_root")]
)
def test_a_best_metric_that_nothing_reports_is_refused_before_anything_is_made(tmp_path, metric, told):
    with pytest.raises(ConfigError, match=rf"config\.checkpoint\.best_metric='{metric}': .*{told}"):
        train(tiny_config(checkpoint__best_metric=metric), tmp_path, TinyTask())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert train(tiny_config(checkpoint__best_metric="", train__steps=1), tmp_path, TinyTask())["status"] == "complete"
    derived = tiny_config(checkpoint__best_metric="val_root", train__steps=2)
    assert train(derived, tmp_path, TinyTask())["status"] == "complete"


def test_to_look_for_the_names_of_metrics_costs_no_second_trace():
    config, task = tiny_config(), TinyTask()
    ready = setup.prepare(config, task)
    evaluators = Evaluators(config, task, ready.mesh)
    with jax.set_mesh(ready.mesh):
        assert evaluators.names(ready.shapes, ready.batch) == {"val_loss", "val_root"}
        state = setup.init_state(config, task, ready, draw(0))
        assert set(evaluators.everything(state)) == {"val_loss", "val_root"}
    assert evaluators.traces == 1


class ShortTask(TinyTask):
    def data(self, split, process_index=0, process_count=1):
        return super().data(split)[:3]


def test_training_data_that_ends_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="the training data ended at step 3 of 6"):
        train(tiny_config(), tmp_path, ShortTask())


def test_profile_of_some_steps(tmp_path):
    train(tiny_config(profile__steps="2:4", train__steps=4), tmp_path, TinyTask())
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))

"""Metrics, evaluators, writers, tables and what the person sees."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paperlab.errors import ConfigError
from paperlab.training import setup
from paperlab.training.checkpoint import Checkpoints
from paperlab.training.evaluation import Evaluators
from paperlab.training.loop import train
from paperlab.training.mesh import make_mesh
from paperlab.training.metrics import WATCHED, Clock, Meter, NonFiniteError
from paperlab.training.paths import parameter_table
from paperlab.training.peaks import peak_flops
from paperlab.training.profiling import parse_range
from paperlab.training.progress import Progress, clock, describe, short
from paperlab.training.summary import plain
from paperlab.training.writers import JsonLines, Writers, read
from tests.training.tiny_task import TinyTask, draw, tiny_config


def metrics(loss, weight=1.0, nonfinite=0.0):
    watched = {**dict.fromkeys(WATCHED, (0.0, 1.0)), "nonfinite": (nonfinite, 1.0)}
    return {"loss": (loss * weight, weight), "grad_norm": (1.0, 1.0), **watched}


# metrics


def test_meter_is_one_step_late_and_complete_after_a_flush():
    meter = Meter()
    meter.push(1, metrics(2.0, 3.0))
    assert meter.sums == {}
    meter.push(2, metrics(8.0, 1.0))
    assert meter.sums["loss"] == [6.0, 3.0]
    meter.flush()
    assert meter.report()["loss"] == (6.0 + 8.0) / 4.0
    assert meter.report() == {}


def test_meter_resumes_in_the_middle_of_a_window():
    whole, first = Meter(), Meter()
    for meter, losses in [(whole, (0.1, 0.2, 0.7)), (first, (0.1, 0.2))]:
        for step, loss in enumerate(losses, 1):
            meter.push(step, metrics(loss, 3.0))
        meter.flush()
    second = Meter()
    second.restore(json.loads(json.dumps(first.state())))
    second.push(3, metrics(0.7, 3.0))
    second.flush()
    assert second.report() == whole.report()


@pytest.mark.parametrize(("loss", "nonfinite"), [(math.nan, 1.0), (math.inf, 0.0), (1.0, 2.0)])
def test_what_is_not_finite_is_an_error_with_its_step(loss, nonfinite):
    meter = Meter()
    meter.push(7, metrics(loss, 1.0, nonfinite))
    with pytest.raises(NonFiniteError, match="step 7: loss"):
        meter.push(8, metrics(1.0))


def test_clock_leaves_pauses_out_and_counts_time_before(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("paperlab.training.metrics.time.monotonic", lambda: now[0])
    watch = Clock(per_step=10, unit="tokens_per_second", flops=8.0, peak=16.0, seconds_before=50.0)
    watch.start(0)
    now[0] += 2
    assert watch.report(4, 10) == {
        "tokens_per_second": 20.0,
        "steps_per_second": 2.0,
        "seconds": 52.0,
        "data_wait": 0.0,
        "mfu": 1.0,
        "eta": 3.0,
    }
    since = watch.pause()
    now[0] += 100
    watch.resume(since)
    now[0] += 1
    assert watch.report(8, 10)["tokens_per_second"] == 40.0
    assert watch.median() == 40.0  # the first window is the warm-up


def test_the_share_of_time_spent_waiting_for_data_is_reported(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("paperlab.training.metrics.time.monotonic", lambda: now[0])

    def batches():
        for seconds in (3.0, 1.0, 0.0):
            now[0] += seconds
            yield seconds

    watch = Clock(per_step=10, unit="tokens_per_second", flops=None, peak=None)
    watch.start(0)
    shares = []
    for step, _ in enumerate(watch.waiting(batches()), 1):
        now[0] += 1.0
        shares.append(watch.report(step, 3)["data_wait"])
    assert shares == [0.75, 0.5, 0.0]


# evaluators


def untrained(config, task):
    ready = setup.prepare(config, task)
    state = setup.init_state(config, task, ready, draw(0))
    return ready.mesh, state


def exact(task, state, batches):
    """The same in numpy, in one go."""
    drawn = [draw(10**7 + i, task.rows) for i in range(batches)]
    params = jax.device_get(state.params)
    hidden = [np.tanh(b["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"]) for b in drawn]
    errors = [
        (h @ params["out"]["kernel"] + params["out"]["bias"] - b["y"]) ** 2 for h, b in zip(hidden, drawn, strict=True)
    ]
    weights = np.concatenate([b["weights"] for b in drawn])
    return (np.concatenate(errors) * weights).sum() / weights.sum()


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1)], ids=["one device", "eight"])
def test_evaluators_are_exact_over_uneven_batches_and_traced_once(shape):
    config = tiny_config(
        mesh__data=shape[0],
        evaluators={
            "val": {"split": "validation", "every": 4, "batches": 2},
            "all": {"split": "validation", "every": 3, "batches": 0},
        },
    )
    task = TinyTask()
    mesh, state = untrained(config, task)
    evaluators = Evaluators(config, task, mesh)
    found = evaluators.run(["val", "all"], state)
    assert set(found) == {"val_loss", "val_root", "all_loss", "all_root"}
    np.testing.assert_allclose(found["val_loss"], exact(task, state, 2), rtol=1e-5)
    np.testing.assert_allclose(found["all_loss"], exact(task, state, 5), rtol=1e-5)
    np.testing.assert_allclose(evaluators.everything(state)["val_loss"], exact(task, state, 5), rtol=1e-5)
    np.testing.assert_allclose(found["val_root"], found["val_loss"] ** 0.5)
    assert evaluators.traces == 1
    assert [evaluators.due(step) for step in (3, 4, 5, 12)] == [["all"], ["val"], [], ["all", "val"]]


def test_the_average_is_what_is_evaluated():
    config, task = tiny_config(train__ema_decay=0.9), TinyTask()
    mesh, state = untrained(config, task)
    state = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    with_ema = Evaluators(config, task, mesh).everything(state)["val_loss"]
    np.testing.assert_allclose(with_ema, exact(task, state._replace(params=state.ema), 5), rtol=1e-5)


def test_a_short_last_batch_counts_as_what_it_is():
    class Ragged(TinyTask):
        def data(self, split, process_index=0, process_count=1):
            def cut(index, batch):
                short = split != "train" and index == 4
                return {k: v[:3] for k, v in batch.items()} if short else batch

            return super().data(split).map_with_index(cut)

    config, task = tiny_config(mesh__data=8), Ragged()
    mesh, state = untrained(config, task)
    found = Evaluators(config, task, mesh).everything(state)
    assert math.isfinite(found["val_loss"])
    assert found["val_loss"] != Evaluators(config, TinyTask(), mesh).everything(state)["val_loss"]


@pytest.mark.parametrize(("split", "message"), [("train", "this split never ends"), ("nothing", "this split is empty")])
def test_a_split_that_cannot_be_evaluated_is_refused(split, message):
    class Odd(TinyTask):
        def data(self, split, process_index=0, process_count=1):
            return super().data("validation")[:0] if split == "nothing" else super().data(split)

    config, task = tiny_config(evaluators={"val": {"split": split, "every": 4, "batches": 2}}), Odd()
    mesh, state = untrained(config, task)
    with pytest.raises(ConfigError, match=f"config.evaluators.val.split='{split}': {message}"):
        Evaluators(config, task, mesh).everything(state)


# writers


def test_lines_after_the_restored_step_and_half_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n{"step": 6, "lo')
    with JsonLines(path, keep_until=3) as writer:
        writer.write(4, {"loss": 0.25, "odd": math.nan})
    assert read(path) == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.25, "odd": None}]


def test_without_a_step_all_whole_lines_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\nnot json\n')
    JsonLines(path).close()
    assert read(path) == [{"step": 9}]


def test_tensorboard_and_other_processes(tmp_path):
    config = tiny_config(log__tensorboard=True)
    writers = Writers(config, tmp_path, process=0, keep_until=0)
    writers.write(1, {"loss": 1.0})
    writers.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
    silent = Writers(config, tmp_path / "other", process=1, keep_until=0)
    silent.write(1, {"loss": 1.0})
    assert not (tmp_path / "other").exists()


def test_missing_extra_names_the_command(tmp_path):
    with pytest.raises(ConfigError, match=r"pip install 'paperlab\[wandb\]'"):
        Writers(tiny_config(log__wandb="project"), tmp_path, process=0, keep_until=0)


# what is shown


def test_parameter_table():
    mesh = make_mesh(tiny_config(mesh__data=2, mesh__fsdp=4).mesh)
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((8, 3), jnp.bfloat16)}, "b": jax.ShapeDtypeStruct((), jnp.float32)}
    placed = {"a": {"kernel": NamedSharding(mesh, P(("data", "fsdp")))}, "b": NamedSharding(mesh, P())}
    table = parameter_table(shapes, placed, {"b": "too small"}).splitlines()
    assert table == [
        "path      shape  dtype     count  sharding                bytes/device",
        "a/kernel  8x3    bfloat16     24  data+fsdp                          6",
        "b         -      float32       1  replicated (too small)             4",
        "total                         25                                    10",
    ]


def test_numbers_are_short():
    assert [short(n) for n in (12, 11234, 2.5e6, 3e9)] == ["12", "11.2k", "2.5M", "3G"]
    assert [clock(s) for s in (None, 5, 65, 3725)] == ["-", "0:05", "1:05", "1:02:05"]
    shown = describe({"loss": 1.5, "bits_per_byte": 2.0, "grad_norm": 9.0, "tokens_per_second": 11234, "mfu": 0.4})
    assert shown == "loss 1.5  bits per byte 2  11.2k tokens/s  MFU 40.0%"


def test_summaries_are_json():
    value = {"a": np.float32(0.5), 3: [jnp.ones(2), math.nan], "path": TinyTask}
    assert json.loads(json.dumps(plain(value)))["a"] == 0.5
    assert plain(value)["3"] == [[1.0, 1.0], None]


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("TPU v5 lite", 197e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks_by_device_kind(kind, peak):
    assert peak_flops(type("Device", (), {"device_kind": kind})()) == peak


def test_profile_ranges():
    assert (parse_range("10:15"), parse_range("")) == (range(10, 15), range(0))
    for text in ("10", "5:5", "a:b", ":3"):
        with pytest.raises(ConfigError, match=r"config.profile.steps"):
            parse_range(text)


# the best checkpoint


def test_the_best_by_a_metric_stays(tmp_path):
    config = tiny_config(
        train__steps=8,
        train__checkpoint_every=2,
        evaluators={"val": {"split": "validation", "every": 2, "batches": 0}},
        checkpoint__keep=1,
        optim__lr=0.3,
        optim__clip=0.0,
    )
    train(config, tmp_path, TinyTask())
    lines = {line["step"]: line["val_loss"] for line in read(tmp_path / "metrics.jsonl") if "val_loss" in line}
    best = min(lines, key=lambda step: lines[step])
    steps = [int(p.name) for p in Checkpoints(tmp_path, config.checkpoint).directory.iterdir()]
    assert set(steps) == {best, 8}


def test_without_a_terminal_there_are_plain_lines_and_of_several_processes_the_first_speaks(capsys):
    for process, told in ((0, "step 2/4  loss 1.5  1.2k tokens/s  eta 1:05\n"), (3, "")):
        progress = Progress(4, process=process)
        progress.advance(2)
        progress.report(2, {"loss": 1.5, "tokens_per_second": 1200.0, "eta": 65.0})
        progress.close()
        assert capsys.readouterr().out == told

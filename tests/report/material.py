"""Work directories and results as the programs write them, and as accidents leave them."""

import json
import math
import random
from pathlib import Path
from typing import Any

BASELINES = {
    "uniform_bits_per_byte": 8.0,
    "unigram_bits_per_byte": 4.9,
    "bigram_bits_per_byte": 3.57,
    "bigram_entropy_bits_per_byte": 3.4,
    "gzip9_bits_per_byte": 1.97,
    "xz9_bits_per_byte": 1.55,
}


def config(variant: str = "", **model: Any) -> dict[str, Any]:
    """What is in config.json, a few fields of it."""
    return {
        "slug": "gla",
        "variant": variant,
        "seed": 0,
        "task": {"name": "language_modelling", "z_loss": 0.0},
        "model": {"name": "lm", "mixer": "gla", "width": 96, "depth": 4, **model},
        "mixers": {"gla": {"gate": variant or "channel"}},
        "train": {"steps": 400, "checkpoint_every": 100},
        "evaluators": {"val": {"split": "validation", "every": 100, "batches": 20}},
        "checkpoint": {"best_metric": "val_bits_per_byte", "best_mode": "min"},
    }


def run(folder: Path, variant: str = "", *, steps: int = 400, seed: int = 0, log_every: int = 10, **model: Any) -> Path:
    """A whole run: config, metrics, summary, checkpoints, samples, a picture."""
    folder.mkdir(parents=True)
    dice = random.Random(seed)
    floor = 1.2 + 0.5 * dice.random()
    lines: list[dict[str, Any]] = []
    for step in range(log_every, steps + 1, log_every):
        loss = floor + 4 * math.exp(-step / 60) + 0.08 * dice.gauss(0, 1)
        rate = 3e-3 * (1 - step / (steps + 1))
        line = {"step": step, "loss": loss, "accuracy": 1 / (1 + loss), "grad_norm": abs(dice.gauss(0.6, 0.3)) + 0.05}
        lines.append({**line, "learning_rate": rate, "nonfinite": 0.0, "tokens_per_second": dice.gauss(19_600, 500)})
        if step % 100 == 0:
            lines.append({"step": step, "val_loss": loss + 0.1, "val_bits_per_byte": (loss + 0.1) * 1.44})
    last = {name: value for line in lines for name, value in line.items() if name != "step"}
    summary = {
        "baselines": BASELINES,
        "status": "complete",
        "steps": steps,
        "val_bits_per_byte": last.get("val_bits_per_byte", 2.0),
        "train": {"loss": last.get("loss")},
        "tokens_per_second": 19_632.4,
        "seconds": 311.2,
        "devices": {"kind": "cpu", "count": 1, "processes": 1},
    }
    asked = {"date": "2026-11-20T10:00:00+00:00", "overrides": {"train.steps": str(steps)}, "changed": {}}
    write(folder / "config.json", config(variant, **model))
    write(folder / "overrides.json", [asked])
    write(folder / "summary.json", summary)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "parameters.txt").write_text("embed/embedding  257 x 96  24,672\n")
    (folder / "samples.txt").write_text('--- "def "\ndef f(x): return <b>x</b> & y\n')
    (folder / "checkpoints" / str(steps)).mkdir(parents=True)
    return folder


def write(file: Path, value: Any) -> None:
    """JSON into a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def picture(file: Path, colour: str = "#0b5fa5") -> None:
    """A picture that is a picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 5"><rect width="9" height="5" fill="{colour}"/></svg>'
    )


def damaged(root: Path) -> dict[str, str]:
    """Runs in every state that an accident leaves; {name of the folder: words that the page must say}."""
    told = {}

    def broken(name: str, file: str, content: bytes, words: str) -> None:
        folder = run(root / name, "scalar", steps=50)
        (folder / file).write_bytes(content)
        told[name] = words

    broken("half-config", "config.json", b'{"slug": "gla", "mo', "config.json is not JSON")
    broken("binary-config", "config.json", bytes(range(256)), "config.json is not UTF-8 text")
    broken("list-config", "config.json", b"[1, 2]", "config.json holds a list, not an object")
    broken("empty-summary", "summary.json", b"", "summary.json is empty")
    broken("deep-summary", "summary.json", b"[" * 100_000, "summary.json is nested too deeply")
    broken("half-line", "metrics.jsonl", b'{"step": 10, "loss": 2.0}\n{"step": 20, "lo', "1 line is damaged")
    broken("garbage-metrics", "metrics.jsonl", b"\x00\xff\n" * 5, "5 lines are damaged")
    broken("strange-overrides", "overrides.json", b'{"a": 1', "overrides.json is not JSON")
    (root / "no-config").mkdir(parents=True)
    (root / "no-config" / "metrics.jsonl").write_text('{"step": 1, "loss": 3.5}\n')
    told["no-config"] = "there is no config.json"
    (root / "folder-config" / "config.json").mkdir(parents=True)
    told["folder-config"] = "config.json is a folder"
    return told


def odd(root: Path) -> None:
    """Runs whose numbers are strange but whose files are whole."""
    shapes: dict[str, list[dict[str, Any]]] = {
        "one-point": [{"step": 7, "loss": 2.5}],
        "gaps": [{"step": s, "loss": None if 40 < s < 70 else 3 - s / 100} for s in range(0, 101, 2)],
        "nothing-finite": [{"step": s, "loss": None} for s in range(5)],
        "negative": [{"step": s, "loss": -s / 10} for s in range(20)],
        "huge": [{"step": s, "loss": 10.0 ** (30 * s)} for s in range(1, 11)],
        "constant": [{"step": s, "loss": 1.25} for s in range(20)],
        "strange-types": [
            {"step": 1, "loss": "two", "a": [1], "b": {"c": 1}, "d": True, "e": 10**400},
            {"step": "2", "loss": 1.0},
            {"step": 3, "loss": 10**400},
            {"step": 10**40, "loss": 1.0},
        ],
    }
    for name, lines in shapes.items():
        write(root / name / "config.json", config(name))
        (root / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(root / "empty-metrics" / "config.json", config("empty"))
    (root / "empty-metrics" / "metrics.jsonl").write_text("")


def incidents(folder: Path) -> None:
    """A rollback and a skip."""
    lines = [
        {
            "kind": "rollback",
            "step": 130,
            "cause": "nonfinite",
            "what": "loss nan",
            "restored": 100,
            "data": [100, 129],
        },
        {"kind": "skip", "step": 210, "cause": "spike", "what": "loss 9.1, 6.2 deviations above its mean"},
    ]
    (folder / "incidents.jsonl").write_text("".join(json.dumps({**line, "check": "0f0f"}) + "\n" for line in lines))


def bench(results: Path) -> None:
    """Two documents of benchmarks: one with a series of cases and an aim that is not met, one damaged."""
    about = {
        "date": "2026-11-22",
        "commit": "0123456789abcdef",
        "dirty": True,
        "device": "cpu",
        "machine": "a processor, 2 cores",
        "versions": {"python": "3.12.1", "jax": "0.11.2"},
    }
    rows = [
        {
            "bench": "compile",
            "case": {"depth": depth, "width": 96},
            "ms": {"stacked": 900 + 12 * depth, "unrolled": 450.0 * depth},
            "spread": {"stacked": [880 + 12 * depth, 960 + 12 * depth], "unrolled": [430.0 * depth, 480.0 * depth]},
            "rounds": 3,
            "step_ratio": 0.9,
        }
        for depth in (2, 4, 8, 16)
    ]
    rows += [
        {
            "bench": "overhead",
            "case": {"config": "experiments/gla.py"},
            "ms": {"ours": 101.3, "by hand": 100.9},
            "spread": {"ours": [99.0, 104.5], "by hand": [98.8, 103.9]},
            "tokens_per_second": 20_211.0,
        }
    ]
    aims = [
        {
            "bench": "overhead",
            "what": "our step over a jit written by hand",
            "value": 1.004,
            "aim": 1.01,
            "comparison": "<=",
            "unit": "",
            "met": True,
        },
        {
            "bench": "start",
            "what": "imports",
            "value": 3.4,
            "aim": 3.0,
            "comparison": "<",
            "unit": "s",
            "met": False,
        },
    ]
    write(results / "bench" / "all.json", {"title": "Speed", **about, "rows": rows, "aims": aims})
    (results / "bench" / "half.json").write_text('{"title": "Ha')


def faults(results: Path, *, lost: int = 1) -> None:
    """A campaign of which some rounds were lost."""
    kinds = {
        "kill": {"rounds": 40, "recovered": 40},
        "kill_during_a_save": {"rounds": 30, "recovered": 30 - lost},
        "flipped_byte": {"rounds": 30, "recovered": 30},
    }
    failures = [{"round": 17 + i, "kind": "kill_during_a_save", "what": "step 40 <differs>"} for i in range(lost)]
    content: dict[str, Any] = {
        "title": "Fault campaign",
        "date": "2026-11-22",
        "commit": "0123456789abcdef",
        "dirty": False,
    }
    numbers = {
        "device": "cpu",
        "what": {"kill": "SIGKILL at a random moment."},
        "rounds": 100,
        "seed": 0,
        "passed": 100 - lost,
        "seconds": 622.0,
    }
    write(results / "faults.json", {**content, **numbers, "kinds": kinds, "failures": failures})

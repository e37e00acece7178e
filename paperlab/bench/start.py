"""Imports, and a run of one step from the shell: real processes, cold and warm.

`imports` are those of a run of the default experiment; `jax alone` and `python alone` say what is not ours. `cold` has no compiled
programs and no cached data, `warm` comes second. A run of one step does all that a run does: it evaluates the whole validation
split, saves, writes samples and the summary. `to the first step` is until its line is printed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paperlab.bench.record import Aim, Options, Row, number
from paperlab.bench.timing import Samples

EVERYTHING = (
    "import paperlab.run, paperlab.training.loop, paperlab.tasks.language_modelling, paperlab.models.lm, "
    "paperlab.mixers.gla, paperlab.data.text"
)
CODES = {"python alone": "pass", "jax alone": "import jax", "imports": EVERYTHING}
ROUNDS = 7
RUNS = 3


def rows(options: Options) -> Iterable[Row]:
    """Two rows: imports, and the one-step run."""
    yield Row({"what": "imports"}, _imports(1 if options.quick else ROUNDS))
    yield Row({"what": "run of one step"}, _runs(options, 1 if options.quick else RUNS))


def _imports(rounds: int) -> Samples:
    samples: Samples = {label: [] for label in CODES}
    for turn in range(-1, rounds):
        for label, code in CODES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=_environment(None))
            if turn >= 0:
                samples[label].append((time.perf_counter() - start) * 1e3)
    return samples


def _runs(options: Options, rounds: int) -> Samples:
    samples: Samples = {f"{when}, {what}": [] for when in ("warm", "cold") for what in ("to the first step", "whole")}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for when in ("cold", "warm"):
                first, whole = _one_step(options, Path(folder), when)
                samples[f"{when}, to the first step"].append(first)
                samples[f"{when}, whole"].append(whole)
    return samples


def _one_step(options: Options, folder: Path, name: str) -> tuple[float, float]:
    """Milliseconds until the line of the first step, and until the end."""
    command = [sys.executable, "-u", "-m", "paperlab.run", f"--config={options.config}", "--config.train.steps=1"]
    command += [f"--workdir={folder / name}", *(_quick_flags() if options.quick else [])]
    start, first, said = time.perf_counter(), 0.0, []
    with subprocess.Popen(
        command, env=_environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if not first and line.lstrip().startswith("step 1"):
                first = (time.perf_counter() - start) * 1e3
    whole = (time.perf_counter() - start) * 1e3
    if process.returncode or not first:
        raise RuntimeError(f"start: {' '.join(command)} ended with {process.returncode}: {''.join(said[-3:]).strip()}")
    return first, whole


def _quick_flags() -> list[str]:
    from paperlab.bench.subject import TINY

    return [f"--config.{path}={value}" for path, value in TINY.items()]


def _environment(cache: Path | None) -> dict[str, str]:
    """This process's, with caches in a folder of their own as a newcomer's first run has them."""
    environment: dict[str, Any] = {**os.environ}
    if cache is not None:
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        environment["XDG_CACHE_HOME"] = str(cache)
    return environment


def _seconds(milliseconds: float) -> float:
    return milliseconds / 1e3


AIMS = (
    Aim("imports of a run", "<", 3.0, "s", number("imports", _seconds, what="imports")),
    Aim("run of one step, warm", "<", 10.0, "s", number("warm, whole", _seconds, what="run of one step")),
)

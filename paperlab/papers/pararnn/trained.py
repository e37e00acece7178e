"""Claim 3: what a nonlinear recurrence learns that a linear one cannot, and what bounding its weights trades for speed.

All models are arms of `experiments/pararnn.py`; the seeds of an arm train under one vmap of the trainer's step, and learn step by
step. Afterwards they are run in parallel, in float64, to see how many Newton iterations what was learned takes.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.evidence import Laboratory, Outcome

EXPERIMENT = Path(__file__).parents[3] / "experiments" / "pararnn.py"
SEEDS = (0, 1, 2)
WORDS = 256  # validation words on which trained models are run in parallel
TOLERANCE = 1e-12  # of the residual, where iteration goes on until it is met
EPOCHS, EXAMPLES = 200, 10_000  # on an accelerator: 3000 epochs in the paper
TABLE_6 = ("keep", "parity", "mqar", "hops", "hops2")


def parity_config(arm: str) -> ConfigDict:
    """An arm of the parity experiment."""
    config = load_experiment(f"{EXPERIMENT}:{arm}")
    config.mixers.pararnn.mode = "sequential"
    return resolve(config)


class Trained(NamedTuple):
    """The task of an arm, its parameters with a leading axis of seeds, and the accuracy at the last position by seed."""

    task: Any
    params: Any
    last: list[float]


def trained(lab: Laboratory, arm: str) -> Trained:
    """All seeds of an arm, trained once."""

    def train() -> Trained:
        from paperlab.training.replicas import train_replicas

        config = parity_config(arm)
        task = find("tasks", config.task.name).make(config)
        found = train_replicas(task, config, SEEDS)
        return Trained(task, found.params, found.final("validation_last_accuracy").tolist())

    return lab.once(f"trained {arm}", train)


def parity(lab: Laboratory, arm: str) -> Outcome:
    """Accuracy at the last of 32 positions, mean over seeds."""
    found = trained(lab, arm)
    config = found.task.config
    scale = f"d={config.model.width}, T={config.data.sequence_length}, {config.train.steps} steps of {config.data.batch_size} words"
    return Outcome(float(np.mean(found.last)), per_seed=found.last, details={"scale": scale})


class Run(NamedTuple):
    """What the cell put out, [words, T, d], the residual and the iterations of every word."""

    outputs: Array
    residual: Array
    iterations: Array


@partial(jax.jit, static_argnums=0)
def run(model: Any, params: Any, tokens: Array) -> Run:
    """The cell of a cell-only model on some words, as the options of its mixer say."""
    _, sown = model.apply(params, tokens, mutable=["intermediates"])
    own = sown["intermediates"]["mixer"]
    return Run(*(own[name][0] for name in ("core_out", "residual", "iterations")))


def applied(task: Any, params: Any, length: int, **options: Any) -> Run:
    """One trained model in float64 on `WORDS` validation words of a length, its mixer with other options. Inside enable_x64."""
    model = task.model
    mixer = model.mixer.clone(dtype=jnp.float64, **options)
    tokens = _words(task, length)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
    return run(model.clone(mixer=mixer, dtype=jnp.float64), params, tokens)


def _words(task: Any, length: int) -> np.ndarray:
    config = ConfigDict(task.config.to_dict())
    config.data.update(sequence_length=length, batch_size=WORDS)
    config.task.validation_length = 0
    return find("tasks", config.task.name).make(config).data("validation")[0]["tokens"]


def in_parallel(lab: Laboratory, arm: str) -> dict[int, list[dict[str, float]]]:
    """{length: by seed, the error of three iterations, that of iterating to a tolerance, and how many iterations that took}."""

    def measure() -> dict[int, list[dict[str, float]]]:
        found = trained(lab, arm)
        task, by_seed = found.task, [jax.tree.map(lambda a, s=s: a[s], found.params) for s in range(len(SEEDS))]
        return {length: [_compared(task, params, length) for params in by_seed] for length in (32, 100)}

    return lab.once(f"in parallel {arm}", measure)


def _compared(task: Any, params: Any, length: int) -> dict[str, float]:
    with jax.enable_x64(True):
        three = applied(task, params, length, mode="parallel", iterations=3)
        solved = applied(task, params, length, mode="parallel", iterations=length, tolerance=TOLERANCE)
        exact = applied(task, params, length, mode="sequential").outputs
        return {
            "error_of_3": float(jnp.abs(three.outputs - exact).max()),
            "residual_of_3": float(three.residual.max()),
            "error": float(jnp.abs(solved.outputs - exact).max()),
            "iterations": int(solved.iterations.max()),
        }


def _column(lab: Laboratory, arm: str, length: int, name: str) -> list[float]:
    return [row[name] for row in in_parallel(lab, arm)[length]]


def three_are_too_few(lab: Laboratory, length: int) -> Outcome:
    """The error of three iterations on the unclipped model, mean over seeds."""
    errors = _column(lab, "parity", length, "error_of_3")
    return Outcome(float(np.mean(errors)), per_seed=errors, details={"by_length": _named(in_parallel(lab, "parity"))})


def tolerance_is_enough(lab: Laboratory) -> Outcome:
    """The largest error of iterating to the tolerance on the unclipped model, at both lengths."""
    errors = [
        max(pair) for pair in zip(*(_column(lab, "parity", length, "error") for length in (32, 100)), strict=True)
    ]
    return Outcome(max(errors), per_seed=errors, details={"tolerance": TOLERANCE})


def unclipped_iterations(lab: Laboratory) -> Outcome:
    """Iterations to the tolerance of the unclipped model at its training length, mean over seeds; the clipped one as baseline."""
    ours, theirs = (_column(lab, arm, 32, "iterations") for arm in ("parity", "parity_clip09"))
    details = {arm: _named(in_parallel(lab, arm)) for arm in ("parity", "parity_clip09", "parity_clip05")}
    return Outcome(float(np.mean(ours)), float(np.mean(theirs)), ours, details)


def clipped_three_suffice(lab: Laboratory) -> Outcome:
    """The largest error of three iterations on the model clipped at 0.9, at its training length."""
    errors = _column(lab, "parity_clip09", 32, "error_of_3")
    return Outcome(max(errors), per_seed=errors, details={"by_length": _named(in_parallel(lab, "parity_clip09"))})


def _named(found: dict[int, list[dict[str, float]]]) -> dict[str, list[dict[str, float]]]:
    return {f"T={length}": rows for length, rows in found.items()}


def table_6_config(variant: str, cell: str) -> ConfigDict:
    """A task of Table 6 at the paper's size: width 64, length 100, batches of 16, AdamW at 5e-4."""
    config = load_experiment(f"{EXPERIMENT}:{variant}")
    config.model.update(width=64)
    if cell == "attention":
        config.model.mixer = "attention"
        config.optim.project = ()
    else:
        config.mixers.pararnn.update(cell=cell, mode="parallel_fused")
    if variant == "mqar":
        config.task.vocab_size = 128
    config.data.update(sequence_length=100, batch_size=16)
    config.optim.update(lr=5e-4, b2=0.999, weight_decay=1e-6, final_lr=0.0)
    config.train.steps = EPOCHS * EXAMPLES // 16
    return resolve(config)


def table_6(lab: Laboratory, cell: str) -> Outcome:
    """The best of three seeds on each task of Table 6; the worst of the tasks counts. 200 epochs' worth of fresh examples."""
    from paperlab.training.replicas import train_replicas

    def measure(variant: str) -> list[float]:
        config = table_6_config(variant, cell)
        task = find("tasks", config.task.name).make(config)
        name = "validation_last_accuracy" if variant == "parity" else "validation_accuracy"
        return train_replicas(task, config, SEEDS).final(name).tolist()

    found = {variant: lab.once(f"table 6 {cell} {variant}", partial(measure, variant)) for variant in TABLE_6}
    return Outcome(min(max(row) for row in found.values()), details={"accuracies": found})

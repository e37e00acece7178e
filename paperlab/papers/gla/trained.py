"""Claims 3, 4 and 6: what the gate is worth, what it remembers, and how far the model reads beyond its training length.

All models are arms of `experiments/gla.py`, shrunk so that all CPU claims of the paper fit into 20 minutes of two cores; three
seeds of an arm train under one vmap of the trainer's step. Perplexities are exp(nats a byte) on the validation files.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paperlab.config import load_experiment, resolve
from paperlab.data import text
from paperlab.discovery import find
from paperlab.evidence import Laboratory, Outcome

EXPERIMENT = Path(__file__).parents[3] / "experiments" / "gla.py"
SEEDS = (0, 1, 2)
STEPS, WIDTH, DEPTH, ROWS, LENGTH = 700, 96, 3, 8, 256
ARMS = ("no_gate", "fixed_decay", "scalar_gate", "channel_gate")
EVALUATION_BATCHES = 48
LONG = 8 * LENGTH
LONG_WINDOWS = 32
RECALL_STEPS, RECALL_ROWS = 600, 32
RECALL_RATES = (1e-3, 3e-3, 1e-2)
RECALL_GATES = ("channel", "fixed", "none")


def ablation_config(arm: str) -> ConfigDict:
    """One arm of Table 4, scaled down."""
    config = load_experiment(f"{EXPERIMENT}:{arm}")
    config.model.update(width=WIDTH, depth=DEPTH)
    config.mixers.gla.short_conv = False
    config.data.update(sequence_length=LENGTH, batch_size=ROWS)
    config.train.steps = STEPS
    return resolve(config)


def _trained(lab: Laboratory, arm: str) -> tuple[Any, Any]:
    """(task, params with a leading axis of seeds) of an arm."""
    from paperlab.training.replicas import train_replicas

    def train() -> tuple[Any, Any]:
        config = ablation_config(arm)
        task = find("tasks", config.task.name).make(config)
        return task, train_replicas(task, config, SEEDS, evaluate=()).params

    return lab.once(f"trained {arm}", train)


def perplexities(lab: Laboratory, arm: str) -> list[float]:
    """Validation perplexity a byte of each seed, on the first `EVALUATION_BATCHES` batches."""

    def measure() -> list[float]:
        task, params = _trained(lab, arm)
        score = jax.jit(jax.vmap(lambda p, batch: task.evaluate(p, {}, batch)["loss"], in_axes=(0, None)))
        batches = task.data("validation")
        found = [score(params, batches[i]) for i in range(min(EVALUATION_BATCHES, len(batches)))]
        total, weight = (np.sum([np.asarray(pair[i], np.float64) for pair in found], axis=0) for i in (0, 1))
        return np.exp(total / weight).tolist()

    return lab.once(f"perplexities {arm}", measure)


def compare(lab: Laboratory, arm: str, other: str) -> Outcome:
    """Mean perplexity of one arm, that of another as the baseline."""
    ours, theirs = perplexities(lab, arm), perplexities(lab, other)
    scale = f"d={WIDTH}, {DEPTH} layers, T={LENGTH}, {STEPS} steps of {ROWS} rows, seeds {list(SEEDS)}"
    return Outcome(float(np.mean(ours)), float(np.mean(theirs)), ours, {"baseline_per_seed": theirs, "scale": scale})


def ordering(lab: Laboratory) -> Outcome:
    """GLA against the best other arm of the table; draws the bars."""
    from paperlab.papers.gla import charts

    found = {arm: perplexities(lab, arm) for arm in ARMS}
    _save(charts.perplexity_bars(found), lab.plots / "gates.png")
    others = {arm: float(np.mean(values)) for arm, values in found.items() if arm != "channel_gate"}
    details = {"perplexities": found, "plot": "gla/gates.png"}
    return Outcome(float(np.mean(found["channel_gate"])), min(others.values()), found["channel_gate"], details)


def long_windows(task: Any, length: int, count: int) -> np.ndarray:
    """Windows of validation text that lie in one document, int32 [count, length + 1]."""
    rows: list[np.ndarray] = []
    batches = text.batches(task.corpus, "validation", sequence_length=length, batch_size=8)
    for i in range(len(batches)):
        batch = batches[i]
        whole = (batch["segment_ids"] == batch["segment_ids"][:, :1]).all(1) & (batch["weights"] > 0).all(1)
        rows.extend(np.concatenate([batch["tokens"], batch["targets"][:, -1:]], 1)[whole])
    return np.stack(rows[:count])


@cache
def _position_losses(model: Any) -> Any:
    def losses(params: Any, tokens: jax.Array) -> jax.Array:
        logits, _ = model.apply(params, tokens[:, :-1])
        chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
        return jax.nn.logsumexp(logits, -1) - chosen

    return jax.jit(jax.vmap(losses, in_axes=(0, None)))


def loss_by_position(lab: Laboratory, arm: str) -> np.ndarray:
    """Mean loss at each position of windows of 8 times the training length: [seeds, LONG]."""

    def measure() -> np.ndarray:
        task, params = _trained(lab, arm)
        windows = long_windows(task, LONG, LONG_WINDOWS)
        parts = [
            np.asarray(_position_losses(task.model)(params, windows[i : i + 4])) for i in range(0, len(windows), 4)
        ]
        return np.concatenate(parts, 1).mean(1)

    return lab.once(f"positions {arm}", measure)


def degradation(lab: Laboratory, arm: str) -> Outcome:
    """Perplexity at positions 1024 to 2048 over that at 128 to 256, mean over seeds."""
    from paperlab.papers.gla import charts

    losses = {name: loss_by_position(lab, name) for name in ("channel_gate", "attention")}
    _save(charts.perplexity_by_position(losses, LENGTH), lab.plots / "length.png")
    ratios = np.exp(losses[arm][:, LONG // 2 :].mean(1) - losses[arm][:, LENGTH // 2 : LENGTH].mean(1))
    details = {"trained_at": LENGTH, "windows": LONG_WINDOWS, "plot": "gla/length.png"}
    return Outcome(float(ratios.mean()), per_seed=ratios.tolist(), details=details)


def recall_accuracies(lab: Laboratory, gate: str) -> dict[str, Any]:
    """Accuracy of every learning rate and seed of one gate, and the best rate by its mean."""

    def measure() -> dict[str, Any]:
        from paperlab.training.replicas import train_replicas

        config = load_experiment(f"{EXPERIMENT}:mqar")
        config.mixers.gla.gate = gate
        config.data.batch_size = RECALL_ROWS
        config.train.steps = RECALL_STEPS
        config = resolve(config)
        task = find("tasks", config.task.name).make(config)
        rates = np.repeat(RECALL_RATES, len(SEEDS))
        trained = train_replicas(task, config, [*SEEDS] * len(RECALL_RATES), lrs=rates.tolist())
        table = trained.final("validation_accuracy").reshape(len(RECALL_RATES), len(SEEDS))
        best = int(table.mean(1).argmax())
        by_rate = {f"{rate:g}": row.tolist() for rate, row in zip(RECALL_RATES, table, strict=True)}
        return {"best": table[best].tolist(), "best_rate": RECALL_RATES[best], "by_rate": by_rate}

    return lab.once(f"recall {gate}", measure)


def recall(lab: Laboratory, other: str) -> Outcome:
    """Accuracy of GLA against that of another gate, each at its own best learning rate, mean over seeds."""
    ours, theirs = recall_accuracies(lab, "channel"), recall_accuracies(lab, other)
    scale = f"2 layers, 2 heads, d=64, T=64, 4 pairs, vocabulary 64, {RECALL_STEPS} steps of {RECALL_ROWS} rows, short convolution"
    details = {"gla": ours, other: theirs, "scale": scale}
    return Outcome(float(np.mean(ours["best"])), float(np.mean(theirs["best"])), ours["best"], details)


def length_on_accelerator(lab: Laboratory) -> Outcome:
    """d=512, 12 layers, T=2048, 2e8 bytes: perplexity at positions 8192 to 16384 over that at 1024 to 2048."""
    del lab
    config = load_experiment(str(EXPERIMENT))
    config.model.update(width=512, depth=12, heads=4, dtype="bfloat16", remat="full", unroll=1, init_std=0.02)
    config.mixers.gla.update(short_conv=False, init_std=0.02)
    config.data.update(sequence_length=2048, batch_size=32)
    config.train.update(steps=round(2e8 / (2048 * 32)), checkpoint_every=0)
    config.optim.lr = 1e-3
    config.evaluators.val.every = 0
    return trained_and_stretched(resolve(config), windows=16)


def trained_and_stretched(config: ConfigDict, *, windows: int) -> Outcome:
    """Trains by the trainer itself, reads windows of 8 times the length, and compares their last half with the second half
    of the training length."""
    from paperlab.training.loop import train

    task = find("tasks", config.task.name).make(config)
    kept: dict[str, Any] = {}

    def keep_last(step: int, state: Any) -> None:
        if step == config.train.steps:
            kept["params"] = jax.tree.map(lambda x: jnp.copy(x)[None], state.params)

    with tempfile.TemporaryDirectory() as folder:
        train(config, folder, task, on_step=keep_last)
    length = config.data.sequence_length
    rows = long_windows(task, 8 * length, windows)
    losses = np.concatenate([np.asarray(_position_losses(task.model)(kept["params"], row[None])) for row in rows], 1)
    by_position = losses[0].mean(0)
    ratio = float(np.exp(by_position[4 * length :].mean() - by_position[length // 2 : length].mean()))
    return Outcome(ratio, details={"trained_at": length, "windows": len(rows)})


def _save(figure: Any, file: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(file, dpi=150)
    plt.close(figure)

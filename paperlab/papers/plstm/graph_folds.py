"""The accuracy that a set of graphs is reported with: cross-validation, the test fold read at the best validation epoch.

    python -m paperlab.run --config=experiments/plstm.py:full_tu_folds --config.data.path=TUDataset/MUTAG

Every fold is trained by the trainer's own step (paperlab.training.replicas) for `config.train.steps` from the same seed, and
evaluated after every epoch. A fold that stands in metrics.jsonl is not trained again.

Source: pLSTM (arXiv 2506.11997), section 7.3; specification section 9: 10 folds, 8 for training, 1 for validation, 1 for the test.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paperlab.discovery import find
from paperlab.training.replicas import train_replicas
from paperlab.training.writers import Writer, read


def program(config: ConfigDict, workdir: Path, writer: Writer) -> dict[str, Any]:
    """Trains and tests every fold; writes a line for each and returns the mean and the deviation over folds."""
    file = workdir / "metrics.jsonl"
    rows = {int(row["step"]) - 1: row for row in read(file)} if file.is_file() else {}
    for fold in range(config.data.folds):
        if fold not in rows:
            rows[fold] = one_fold(config, fold)
            writer.write(fold + 1, rows[fold])
            print(f"fold {fold}: test {rows[fold]['test_accuracy']:.4f} at epoch {rows[fold]['epoch']:.0f}", flush=True)
    tests = [float(rows[fold]["test_accuracy"]) for fold in range(config.data.folds)]
    return {
        "status": "done",
        "folds": config.data.folds,
        "test_accuracy": float(np.mean(tests)),
        "test_accuracy_deviation": float(np.std(tests)),
        "test_accuracy_of_folds": tests,
    }


def one_fold(config: ConfigDict, fold: int) -> dict[str, float]:
    """Trains on all folds but this one and the next, and returns the scores of the best epoch."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.fold = fold
    task = find("tasks", config.task.name).make(config)
    epoch = task.collection.steps_of_epoch()
    found = train_replicas(
        task, config, [config.seed], evaluate=("validation", "test"), evaluate_every=min(epoch, config.train.steps)
    )
    scores = {
        step: {name: float(value[0]) for name, value in values.items()} for step, values in found.evaluations.items()
    }
    best = best_step(scores)
    return {**scores[best], "epoch": best / epoch}


def best_step(scores: dict[int, dict[str, float]]) -> int:
    """The step of the highest validation accuracy; of several the one with the lowest validation loss, then the first."""
    return max(scores, key=lambda step: (scores[step]["validation_accuracy"], -scores[step]["validation_loss"], -step))

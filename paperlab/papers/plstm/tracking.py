"""Claim 7: states that are tracked along a sequence, which a positive number per step can't.

A transition that turns a state, T = O diag(lambda) I with lambda between -1 and 1, can follow the running product of a word over
a group: parity needs one negative number, the permutations of three things need reflections of a plane. With 0 < T < 1, one
number a head, the last position stays at chance. Both are arms `tracking*` of experiments/plstm.py; three seeds of an arm train
under one vmap of the trainer's step. Accuracy is that of the last of 32 positions on held-out words: every error on the way
shows there.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.evidence import Claim, Laboratory, Outcome, Threshold

EXPERIMENT = Path(__file__).parents[3] / "experiments" / "plstm.py"
SEEDS = (3, 4, 5)  # sizes, steps and alphabet were chosen on 0, 1 and 2
SPLIT, METRIC = "validation", "validation_last_accuracy"


def accuracies(lab: Laboratory, variant: str) -> dict[str, Any]:
    """What every seed of an arm reaches at the last position, and over all positions."""

    def measure() -> dict[str, Any]:
        from paperlab.training.replicas import train_replicas

        config = resolve(load_experiment(f"{EXPERIMENT}:{variant}"))
        task = find("tasks", config.task.name).make(config)
        trained = train_replicas(task, config, SEEDS, evaluate=(SPLIT,))
        found = {"last": trained.final(METRIC).tolist(), "all": trained.final(f"{SPLIT}_accuracy").tolist()}
        shape = {name: config.mixers.plstm[name] for name in ("JT", "JV", "JO", "eigenvalues", "orthogonal")}
        size = {"width": config.model.width, "depth": config.model.depth, "heads": config.model.heads}
        rows = {"length": config.data.sequence_length, "rows": config.data.batch_size, "steps": config.train.steps}
        return {**found, "scale": shape | size | rows}

    return lab.once(f"tracking {variant}", measure)


def follows(lab: Laboratory, turning: str, positive: str) -> Outcome:
    """Last-position accuracy of the worst seed with transitions that turn; the baseline is the mean with positive ones."""
    ours, theirs = accuracies(lab, turning), accuracies(lab, positive)
    details = {turning: ours, positive: theirs, "seeds": list(SEEDS)}
    return Outcome(min(ours["last"]), float(np.mean(theirs["last"])), ours["last"], details)


def stays(lab: Laboratory, positive: str) -> Outcome:
    """Last-position accuracy of the best seed with positive transitions."""
    found = accuracies(lab, positive)
    return Outcome(max(found["last"]), per_seed=found["last"], details={positive: found, "seeds": list(SEEDS)})


SOURCE = (
    "appendices A.5 and A.6; scale: one layer, width 32, 32 letters that generate the group, 3 seeds other than those "
    "on which sizes and steps were chosen"
)
CLAIMS = [
    Claim(
        "7.parity",
        "With orthogonal matrices and lambda between -1 and 1 one layer follows parity over 32 bits (accuracy at the last one, "
        "worst seed; baseline: positive transitions, mean)",
        SOURCE,
        partial(follows, turning="tracking", positive="tracking_positive"),
        Threshold(">=", 0.99),
    ),
    Claim(
        "7.parity_positive",
        "With one positive number a head it does not (the same, best seed; chance is 1/2)",
        SOURCE,
        partial(stays, positive="tracking_positive"),
        Threshold("<=", 0.6),
    ),
    Claim(
        "7.s3",
        "It follows the words of S3, the smallest group that does not commute (the same as for parity)",
        SOURCE,
        partial(follows, turning="tracking_s3", positive="tracking_s3_positive"),
        Threshold(">=", 0.99),
    ),
    Claim(
        "7.s3_positive",
        "With one positive number a head it does not (the same, best seed; chance is 1/6)",
        SOURCE,
        partial(stays, positive="tracking_s3_positive"),
        Threshold("<=", 0.6),
    ),
]

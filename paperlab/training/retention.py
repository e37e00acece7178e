"""Which checkpoints stay: the newest `keep`, every `keep_every` steps, and the best by a metric."""

import math
from collections.abc import Mapping
from typing import Any


def kept(metrics: Mapping[int, Mapping[str, float]], policy: Any) -> set[int]:
    """Steps to keep of {step: metrics at that step} under `config.checkpoint`."""
    steps = sorted(metrics)
    newest = set(steps[-max(policy.keep, 1) :])
    spaced = {step for step in steps if policy.keep_every and step % policy.keep_every == 0}
    return newest | spaced | best(metrics, policy)


def best(metrics: Mapping[int, Mapping[str, float]], policy: Any) -> set[int]:
    """The step with the best `policy.best_metric`, as a set of one or none; the earlier of two equals."""
    values = {step: float(found[policy.best_metric]) for step, found in metrics.items() if policy.best_metric in found}
    values = {step: value for step, value in values.items() if math.isfinite(value)}
    sign = -1 if policy.best_mode == "max" else 1
    return {min(values, key=lambda step: (sign * values[step], step))} if values else set()

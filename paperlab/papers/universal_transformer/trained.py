"""Claims about training: lengths beyond those seen, depth that follows the input, pondering (claims 1 to 4).

Seeds of an arm are trained at once and see the same batches; validation rows of every length and number of hops are their own.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.evidence import Laboratory, Outcome

EXPERIMENT = Path(__file__).parents[3] / "experiments" / "universal_transformer.py"
SEEDS = (1, 2, 3)  # the recipes were chosen on seed 0
PROBLEMS = ("copy", "reverse")
LENGTHS = (16, 24)  # twice and three times the longest row of training


def config_of(arm: str) -> ConfigDict:
    """The experiment's variant."""
    return resolve(load_experiment(f"{EXPERIMENT}:{arm}"))


def scores(lab: Laboratory, arm: str, splits: tuple[str, ...]) -> dict[str, list[float]]:
    """{split_metric: of every seed} after training."""

    def train() -> dict[str, list[float]]:
        from paperlab.training.replicas import train_replicas

        config = config_of(arm)
        task = find("tasks", config.task.name).make(config)
        trained = train_replicas(task, config, SEEDS, evaluate=("validation", *splits), chunk=20)
        last = trained.evaluations[max(trained.evaluations)]
        return {name: np.asarray(values, np.float64).tolist() for name, values in last.items()}

    return lab.once(f"universal_transformer {arm} {splits}", train)


def _lengths(lab: Laboratory, problem: str, arm: str) -> dict[str, list[float]]:
    return scores(lab, f"{problem}_{arm}", tuple(f"length_{n}" for n in LENGTHS))


def _table(found: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: values for name, values in found.items() if name.endswith("accuracy")}


def _scale(arm: str) -> str:
    config = config_of(arm)
    model = f"width {config.model.width}, {config.model.steps} steps"
    return f"{model}, rows of 1 to {config.task.longest} digits, {config.train.steps} training steps of {config.data.batch_size}"


def longer_rows(lab: Laboratory) -> Outcome:
    """Accuracy of symbols at twice the longest length: ours less the Transformer's, the mean over seeds on the worse problem."""
    details: dict[str, Any] = {"scale": _scale("copy_ut")}
    gaps = {}
    name = f"length_{LENGTHS[0]}_accuracy"
    for problem in PROBLEMS:
        arms = {arm: _lengths(lab, problem, arm) for arm in ("ut", "transformer", "transformer_random")}
        gaps[problem] = np.array(arms["ut"][name]) - np.array(arms["transformer"][name])
        details |= {f"{problem}: {arm}": _table(found) for arm, found in arms.items()}
    worse = min(gaps, key=lambda problem: gaps[problem].mean())
    baseline = float(np.mean(_lengths(lab, worse, "transformer")[name]))
    return Outcome(float(gaps[worse].mean()), baseline, gaps[worse].tolist(), details)


def fewer_parameters(lab: Laboratory) -> Outcome:
    """The same against a Transformer that is made narrower until it has no more parameters than ours."""
    name, gaps = f"length_{LENGTHS[0]}_accuracy", {}
    details: dict[str, Any] = {}
    for problem in PROBLEMS:
        ours, theirs = (_lengths(lab, problem, arm) for arm in ("ut", "transformer_equal"))
        gaps[problem] = np.array(ours[name]) - np.array(theirs[name])
        details[problem] = {"recurrent": _table(ours), "Transformer": _table(theirs)}
    details["parameters"] = {arm: parameters(f"copy_{arm}") for arm in ("ut", "transformer_equal")}
    worse = min(gaps, key=lambda problem: gaps[problem].mean())
    return Outcome(float(gaps[worse].mean()), None, gaps[worse].tolist(), details)


def parameters(arm: str) -> int:
    """Numbers that an arm trains."""
    import jax

    config = config_of(arm)
    task = find("tasks", config.task.name).make(config)
    shapes, _ = jax.eval_shape(task.init, jax.random.key(0), task.batch_spec())
    return sum(a.size for a in jax.tree.leaves(shapes))


def depth_follows(lab: Laboratory) -> Outcome:
    """Accuracy at 6 hops after training on 1 to 4, with a step more than hops: the mean over seeds."""
    found = _hops(lab, "hops_ut")
    six = found["hops_6_accuracy"]
    return Outcome(
        float(np.mean(six)), float(np.mean(_hops(lab, "hops_layers")["hops_6_accuracy"])), six, _table(found)
    )


def depth_is_needed(lab: Laboratory) -> Outcome:
    """The same of five layers of their own, which the row tells the hops."""
    found = _hops(lab, "hops_layers")
    six = found["hops_6_accuracy"]
    return Outcome(float(np.mean(six)), None, six, _table(found))


def _hops(lab: Laboratory, arm: str) -> dict[str, list[float]]:
    return scores(lab, arm, ("hops_5", "hops_6", "hops_8"))


def pondering_is_right(lab: Laboratory) -> Outcome:
    """Accuracy with ACT, 1 to 3 hops: the second best of three seeds."""
    found = _pondered(lab, "ponder")["validation_accuracy"]
    return Outcome(sorted(found)[1], None, found, {})


def pondering_follows(lab: Laboratory) -> Outcome:
    """Steps of the place that answers at 3 hops less those at 1; the second best of three seeds whose steps grow with every hop."""
    return _order(lab, "ponder_asked")


def pondering_of_all(lab: Laboratory) -> Outcome:
    """The same for the mean over all places of the row, facts too."""
    return _order(lab, "ponder")


def _order(lab: Laboratory, metric: str) -> Outcome:
    ours, free = _pondered(lab, "ponder"), _pondered(lab, "ponder_free")
    each = []
    for one, two, three in zip(*(ours[f"hops_{k}_{metric}"] for k in (1, 2, 3)), strict=True):
        each.append(three - one if one < two < three else min(three - one, 0.0))
    shown = lambda found: {name: values for name, values in found.items() if "ponder" in name}  # noqa: E731
    return Outcome(sorted(each)[1], None, each, {"weight 0.01": shown(ours), "weight 0": shown(free)})


def _pondered(lab: Laboratory, arm: str) -> dict[str, list[float]]:
    return scores(lab, arm, ("hops_1", "hops_2", "hops_3"))

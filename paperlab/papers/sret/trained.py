"""Claims about training, on the digits of scikit-learn: recursion, slicing, depth (claims 2, 3 and 5).

One stage, 64 tokens, width 32, two unique blocks; every arm sees the same batches under the same seeds.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.evidence import Laboratory, Outcome
from paperlab.papers.sret.stage import Pass, Stage

EXPERIMENT = Path(__file__).parents[3] / "experiments" / "sret.py"
SEEDS = (0, 1, 2, 3, 4)
DEEP_SEEDS = (0, 1, 2)


def config_of(arm: str) -> ConfigDict:
    """The experiment's variant."""
    return resolve(load_experiment(f"{EXPERIMENT}:{arm}"))


def scores(lab: Laboratory, arm: str, seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """Of every seed: validation accuracy at the end, and the training loss of every step [seeds, steps]."""

    def train() -> dict[str, Any]:
        from paperlab.training.replicas import train_replicas

        config = config_of(arm)
        task = find("tasks", config.task.name).make(config)
        trained = train_replicas(task, config, seeds, chunk=20)
        accuracy = np.asarray(trained.final("validation_accuracy"), np.float64)
        return {"accuracy": accuracy.tolist(), "loss": np.asarray(trained.metrics["loss"], np.float64).tolist()}

    return lab.once(f"sret {arm} {seeds}", train)


def _scale(arm: str) -> str:
    config = config_of(arm)
    model = f"width {config.model.dims}, {config.model.unique} blocks, {config.model.depth} applications"
    return f"digits, {model}, {config.train.steps} steps of {config.data.batch_size}"


def recursion_helps(lab: Laboratory) -> Outcome:
    """Paired t over the seeds of: accuracy with two passes less accuracy with one, at equal parameters."""
    ours, once = (np.array(scores(lab, arm)["accuracy"]) for arm in ("recursive", "one_pass"))
    each = ours - once
    spread = each.std(ddof=1) / np.sqrt(len(each))
    t = float(each.mean() / spread) if spread else 0.0
    naive = scores(lab, "naive")["accuracy"]
    details = {
        "scale": _scale("recursive"),
        "two passes": ours.tolist(),
        "one pass": once.tolist(),
        "without NLL and LRC": naive,
    }
    return Outcome(t, None, each.tolist(), details)


def slicing_is_nearly_free(lab: Laboratory) -> Outcome:
    """What 4 groups, then 2, cost in accuracy, mean over seeds."""
    full, sliced = (np.array(scores(lab, arm)["accuracy"]) for arm in ("full_attention", "recursive"))
    details = {"scale": _scale("recursive"), "full": full.tolist(), "sliced": sliced.tolist()}
    return Outcome(float((full - sliced).mean()), None, (full - sliced).tolist(), details)


def slicing_saves_attention(lab: Laboratory) -> Outcome:
    """The share of the products of attention scores that is left: the mean of 1 / G over the passes."""
    del lab
    left = np.mean([1 / int(text) for text in config_of("recursive").model.groups])
    return Outcome(float(left), None, [], {"groups": "4, then 2, of 64 tokens"})


def a_thousand_applications(lab: Laboratory) -> Outcome:
    """Numbers that are not finite in output and gradients, 10 unique blocks x 100 loops, width 32, LRC at 1 and at 0.1."""
    del lab
    details, count = {}, 0
    for start in (1.0, 0.1):
        stage = Stage(32, 4, 10, (Pass(4),) * 100, 64, 32, remat=jax.checkpoint)
        x = jax.random.normal(jax.random.key(0), (1, 16, 32))
        variables = stage.init(jax.random.key(1), x)
        variables = jax.tree_util.tree_map_with_path(
            lambda path, a, s=start: a.at[..., 1::2].set(s) if path[-1].key == "residual" else a, variables
        )
        value, slopes = jax.jit(jax.value_and_grad(lambda v, s=stage, x=x: jnp.square(s.apply(v, x)).mean()))(variables)
        wrong = sum(int((~jnp.isfinite(a)).sum()) for a in jax.tree.leaves((value, slopes)))
        details[f"branches start at {start}"] = {"mean square": float(value), "not finite": wrong}
        count += wrong
    return Outcome(float(count), None, [], details)


def deep_nets_train(lab: Laboratory) -> Outcome:
    """Last over first training loss (means of 10 steps) after 200 steps at 100 applications, the worst seed."""
    each = [np.mean(run[-10:]) / np.mean(run[:10]) for run in scores(lab, "deep", DEEP_SEEDS)["loss"]]
    plain = [np.mean(run[-10:]) / np.mean(run[:10]) for run in scores(lab, "deep_plain", DEEP_SEEDS)["loss"]]
    details = {"scale": _scale("deep"), "without LRC and NLL": [float(x) for x in plain]}
    return Outcome(float(max(each)), float(max(plain)), [float(x) for x in each], details)

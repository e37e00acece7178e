"""Pointer chasing: follow k pointers of a permutation, and say where they lead.

Encoder models (papers.universal_transformer.encoder) take the task. With `steps_follow` every row takes k + 1 steps of its own (at
most config.model.steps); else the row says k. Splits "hops_K" are validation examples of K hops and nothing else.
Source: data/synthetic/pointer_chasing.py.
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.data.synthetic import pointer_chasing
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.limits import at_least
from paperlab.tasks._drawn import DrawnRows, check_splits, number_in, rngs_of

DEFAULTS = {
    "nodes": 16,
    "fewest": 1,
    "most": 4,
    "farthest": 8,
    "steps_follow": True,
    "say_hops": False,
    "validation_examples": 512,
}
LIMITS = {
    "nodes": at_least(2),
    "fewest": at_least(1, "hops in training"),
    "most": at_least(1, "hops in training"),
    "farthest": at_least(1, "hops that a row may say, in evaluation too"),
    "validation_examples": at_least(1),
}
Metrics = dict[str, tuple[jax.Array, jax.Array]]


def make(config: Any) -> "PointerChasing":
    """The task that `config` describes."""
    return PointerChasing(config)


def check(config: Any) -> None:
    """Raises ConfigError for options that do not go together, and for evaluators of a split that there is not."""
    task = config.task
    pointer_chasing.check(task.nodes, task.fewest, task.most)
    check_splits(config, "hops")
    splits = [evaluator.split for evaluator in config.get("evaluators", {}).values()]
    most = max([task.most, *(number_in(split, "hops") or 0 for split in splits)])
    if task.say_hops and most > task.farthest:
        raise ConfigError(
            f"config.task.farthest={task.farthest}: rows must be able to say {most} hops; give at least that"
        )


class PointerChasing(DrawnRows):
    """Classification of a row by its last place."""

    def __init__(self, config: Any):
        self.config = config
        check(config)

    @property
    def vocab_size(self) -> int:
        return pointer_chasing.vocab_size(self.config.task.nodes, self.config.task.farthest)

    @cached_property
    def model(self) -> Any:
        if self.config.model.get("words", 0) < 2:
            raise ConfigError("config.model.words: must be 2, the symbols of a pointer")
        return find("models", self.config.model.name).make(self.config, self.vocab_size, self.config.task.nodes)

    @property
    def tokens_per_batch(self) -> int:
        return self.config.data.batch_size * (self.config.task.nodes + 1)

    def init(self, key: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Parameters, and an empty state."""
        return self.model.init(key, batch["tokens"][:1]), {}

    def loss(
        self, params: Any, state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict]:
        """Sum of losses in nats, number of rows, and {metrics, state}."""
        del step
        logits, notes = self._forward(params, batch, rngs_of(key))
        metrics = self.metrics(logits, notes, batch)
        total = metrics["loss"][0] + (notes["extra_loss"] * batch["weights"]).sum()
        return total, batch["weights"].sum(), {"metrics": metrics, "state": state}

    def evaluate(self, params: Any, state: Any, batch: dict) -> Metrics:
        """(sum, weight) pairs of one batch."""
        del state
        logits, notes = self._forward(params, batch, None)
        return self.metrics(logits, notes, batch)

    def metrics(self, logits_BxN: jax.Array, notes: dict, batch: dict) -> Metrics:
        """Loss, accuracy, and where positions choose their steps the mean of all, and that of the place asked."""
        weights, labels = batch["weights"], batch["labels"]
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits_BxN), labels[:, None], -1)[:, 0]
        values = {"loss": losses, "accuracy": logits_BxN.argmax(-1) == labels}
        if "ponder" in notes:
            n = jax.lax.stop_gradient(notes["ponder"]["encoder"])
            values |= {"ponder": n.mean(-1), "ponder_asked": n[:, -1]}
        return {name: ((value * weights).sum(), weights.sum()) for name, value in values.items()}

    def summary(self) -> dict[str, Any]:
        """What guessing would score."""
        return {"baselines": {"chance_accuracy": 1 / self.config.task.nodes}}

    def options(self, split: str) -> dict[str, Any]:
        task, k = self.config.task, number_in(split, "hops")
        fewest, most = (task.fewest, task.most) if k is None else (k, k)
        return {"nodes": task.nodes, "say_hops": task.say_hops, "fewest": fewest, "most": most}

    def examples(self, indices_B: np.ndarray, *, seed: int = 0, **options: Any) -> dict[str, np.ndarray]:
        return pointer_chasing.examples(indices_B, seed=seed, **options)

    def _forward(self, params: Any, batch: dict, rngs: dict | None) -> tuple[jax.Array, dict]:
        task, steps, limit = self.config.task, None, 0
        if task.steps_follow:
            steps = jnp.minimum(batch["hops"] + 1, self.config.model.steps)
            limit = 0 if rngs is None else task.most + 1
        logits, notes = self.model.apply(
            params, batch["tokens"], steps_B=steps, limit=limit, train=rngs is not None, rngs=rngs or {}
        )
        return logits[:, -1], notes

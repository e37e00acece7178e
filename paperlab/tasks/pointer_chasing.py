"""Pointer chasing: follow k pointers of a permutation, and say where they lead.

Encoder models (papers.universal_transformer.encoder) take the task. With `steps_follow` every row takes k + 1 steps of its own;
else the row says k. Splits "hops_K" are validation examples of K hops and nothing else. Source: data/synthetic/pointer_chasing.py.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.data.synthetic import addressed, pointer_chasing
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.limits import at_least

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
_HOPS = re.compile(r"hops_(\d+)$")
Metrics = dict[str, tuple[jax.Array, jax.Array]]


def make(config: Any) -> "PointerChasing":
    """The task that `config` describes."""
    return PointerChasing(config)


def check(config: Any) -> None:
    """Raises ConfigError for options that do not go together, and for evaluators of a split that there is not."""
    task = config.task
    pointer_chasing.check(task.nodes, task.fewest, task.most)
    splits = {name: one.split for name, one in config.get("evaluators", {}).items()}
    wrong = [name for name, split in splits.items() if split != "validation" and not _HOPS.match(split)]
    if wrong:
        raise ConfigError(
            f"config.evaluators.{wrong[0]}.split={splits[wrong[0]]!r}: choose validation or hops_K, such as hops_6"
        )
    most = max([task.most, *(int(found[1]) for split in splits.values() if (found := _HOPS.match(split)))])
    if task.say_hops and most > task.farthest:
        raise ConfigError(
            f"config.task.farthest={task.farthest}: rows must be able to say {most} hops; give at least that"
        )


class PointerChasing:
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
    def sharding(self) -> tuple:
        return self.model.sharding()

    @property
    def tokens_per_batch(self) -> int:
        return self.config.data.batch_size * (self.config.task.nodes + 1)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one global training batch."""
        one = pointer_chasing.examples(np.arange(1), **self._options("train"))
        rows = self.config.data.batch_size
        return {name: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype) for name, a in one.items()}

    def init(self, key: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Parameters, and an empty state."""
        return self.model.init(key, batch["tokens"][:1]), {}

    def loss(
        self, params: Any, state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict]:
        """Sum of losses in nats, number of rows, and {metrics, state}."""
        del step
        keys = dict(zip(("dropout", "positions", "halting"), jax.random.split(key, 3), strict=True))
        logits, notes = self._forward(params, batch, keys)
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

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        """Endless batches for "train", one pass for "validation" and "hops_K"."""
        return addressed.batches(
            pointer_chasing.examples,
            split if split == "train" else "validation",
            batch_size=self.config.data.batch_size,
            seed=self.config.data.shuffle_seed,
            validation_examples=self.config.task.validation_examples,
            process_index=process_index,
            process_count=process_count,
            **self._options(split),
        )

    def summary(self) -> dict[str, Any]:
        """What guessing would score."""
        return {"baselines": {"chance_accuracy": 1 / self.config.task.nodes}}

    def show(self, params: Any, state: Any, workdir: Path) -> dict[str, Any]:
        """Nothing to read in nodes."""
        return {}

    def _options(self, split: str) -> dict[str, Any]:
        task, found = self.config.task, _HOPS.match(split)
        fewest, most = (int(found[1]),) * 2 if found else (task.fewest, task.most)
        return {"nodes": task.nodes, "say_hops": task.say_hops, "fewest": fewest, "most": most}

    def _forward(self, params: Any, batch: dict, rngs: dict | None) -> tuple[jax.Array, dict]:
        task, steps, limit = self.config.task, None, 0
        if task.steps_follow:
            steps = jnp.minimum(batch["hops"] + 1, self.config.model.steps)
            limit = 0 if rngs is None else task.most + 1
        logits, notes = self.model.apply(
            params, batch["tokens"], steps_B=steps, limit=limit, train=rngs is not None, rngs=rngs or {}
        )
        return logits[:, -1], notes

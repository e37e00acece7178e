"""State tracking: the running product of a word over a finite group, asked at every position.

Parity is `group="Z2"`. `last_accuracy` counts the last position alone: the product of the whole word, where an error made anywhere
shows. With `validation_length` the validation words are longer (or shorter) than those of training. Any language model takes the
task; rows and the length of training words are the data section's. Source: data/synthetic/group_words.py.
"""

from functools import cached_property
from typing import Any

import jax.numpy as jnp

from paperlab.data.synthetic import group_words
from paperlab.limits import at_least, one_of
from paperlab.tasks import language_modelling
from paperlab.tasks._integers import IntegerTask

DEFAULTS = {
    **language_modelling.DEFAULTS,
    "group": "Z2",
    "alphabet": "all",
    "validation_length": 0,  # 0: that of training
    "validation_examples": 1024,
}
LIMITS = {
    **language_modelling.LIMITS,
    "alphabet": one_of(*group_words.ALPHABETS),
    "validation_length": at_least(0, "0: that of training"),
    "validation_examples": at_least(1),
}


def make(config: Any) -> "StateTracking":
    """The task that `config` describes."""
    return StateTracking(config)


def check(config: Any) -> None:
    """Raises ConfigError for a group that there is not."""
    language_modelling.check(config)
    group_words.check(config.task.group, config.task.alphabet)


class StateTracking(IntegerTask):
    """Language modelling in which the target of a letter is the product up to it."""

    @cached_property
    def vocab_size(self) -> int:
        return group_words.order(self.config.task.group)

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        task = self.config.task
        options = {"group": task.group, "alphabet": task.alphabet}
        if split == "validation":
            options["sequence_length"] = task.validation_length
        return self.batches(group_words.examples, split, process_index, process_count, **options)

    def metrics(self, logits: Any, nll_BxT: Any, batch: dict) -> language_modelling.Metrics:
        right = (logits[:, -1].argmax(-1) == batch["targets"][:, -1]).astype(jnp.float32)
        weights = batch["weights"][:, -1]
        last = ((right * weights).sum(), weights.sum())
        return {**super().metrics(logits, nll_BxT, batch), "last_accuracy": last}

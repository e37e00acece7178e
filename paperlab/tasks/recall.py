"""Multi-query associative recall: after a list of key-value pairs, say the value of every key that comes again.

The loss and the accuracy count the answers only. Any language model takes the task; lengths and rows are the data section's.
Source: Zoology (arXiv 2312.04927); Figure 4 of arXiv 2312.06635.
"""

from typing import Any

from paperlab.data.synthetic import mqar
from paperlab.limits import above, at_least
from paperlab.tasks import language_modelling
from paperlab.tasks._integers import IntegerTask

DEFAULTS = {
    **language_modelling.DEFAULTS,
    "vocab_size": 64,
    "num_pairs": 8,
    "min_pairs": 0,  # 0: every example has num_pairs
    "power": 0.01,
    "random_filler": True,
    "validation_examples": 1024,
}
LIMITS = {
    **language_modelling.LIMITS,
    "vocab_size": at_least(4),
    "num_pairs": at_least(1),
    "min_pairs": at_least(0, "0: every example has num_pairs"),
    "power": above(0, "1: even, 0.01: as in the paper"),
    "validation_examples": at_least(1),
}


def make(config: Any) -> "Recall":
    """The task that `config` describes."""
    return Recall(config)


def check(config: Any) -> None:
    """Raises ConfigError for sizes that do not go together."""
    language_modelling.check(config)
    task = config.task
    mqar.check(task.vocab_size, config.data.sequence_length, task.num_pairs, task.min_pairs, task.power)


class Recall(IntegerTask):
    """Language modelling on generated sequences of which only the answers are predicted."""

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        names = ("vocab_size", "num_pairs", "min_pairs", "power", "random_filler")
        options = {name: self.config.task[name] for name in names}
        return self.batches(mqar.examples, split, process_index, process_count, **options)

    def chance(self) -> float:
        """One of the values."""
        return 2 / self.vocab_size

"""Keep the n-th symbol of a sequence and say it at the end (or at every place from there on).

Any language model takes the task; rows and length are the data section's. Source: data/synthetic/keep_nth.py.
"""

from typing import Any

from paperlab.data.synthetic import keep_nth
from paperlab.data.synthetic.addressed import ASKED
from paperlab.limits import at_least, one_of
from paperlab.tasks import language_modelling
from paperlab.tasks._integers import IntegerTask

DEFAULTS = {**language_modelling.DEFAULTS, "vocab_size": 128, "keep": 5, "asked": "last", "validation_examples": 1024}
LIMITS = {
    **language_modelling.LIMITS,
    "vocab_size": at_least(2),
    "keep": at_least(1),
    "asked": one_of(*ASKED),
    "validation_examples": at_least(1),
}


def make(config: Any) -> "KeepNth":
    """The task that `config` describes."""
    return KeepNth(config)


def check(config: Any) -> None:
    """Raises ConfigError for a place that the sequence does not have."""
    language_modelling.check(config)
    keep_nth.check(config.task.keep, config.task.asked, config.data.sequence_length)


class KeepNth(IntegerTask):
    """Language modelling in which one symbol of the past is asked."""

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        options = {name: self.config.task[name] for name in ("vocab_size", "keep", "asked")}
        return self.batches(keep_nth.examples, split, process_index, process_count, **options)

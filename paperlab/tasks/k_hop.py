"""k-hop induction: follow k times the symbol after the last occurrence of the current one, and say where it leads.

Any language model takes the task; rows and length are the data section's. Source: data/synthetic/k_hop.py.
"""

from typing import Any

import numpy as np

from paperlab.data.synthetic import k_hop
from paperlab.data.synthetic.addressed import ASKED
from paperlab.limits import at_least, one_of
from paperlab.tasks import language_modelling
from paperlab.tasks._integers import IntegerTask

DEFAULTS = {**language_modelling.DEFAULTS, "vocab_size": 10, "hops": 1, "asked": "last", "validation_examples": 1024}
LIMITS = {
    **language_modelling.LIMITS,
    "vocab_size": at_least(2),
    "hops": at_least(1),
    "asked": one_of(*ASKED),
    "validation_examples": at_least(1),
}


def make(config: Any) -> "KHop":
    """The task that `config` describes."""
    return KHop(config)


def check(config: Any) -> None:
    """Raises ConfigError for options out of range."""
    language_modelling.check(config)
    k_hop.check(config.task.hops, config.task.asked)


class KHop(IntegerTask):
    """Language modelling in which the end of a chain of k look-ups is asked."""

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        options = {name: self.config.task[name] for name in ("vocab_size", "hops", "asked")}
        return self.batches(k_hop.examples, split, process_index, process_count, **options)

    def summary(self) -> dict[str, Any]:
        """What guessing scores, and saying the current symbol again: two hops over 5 symbols lead back half of the time."""
        baselines = {"chance_accuracy": self.chance(), "repeat_accuracy": self.repeating(4096)}
        return {"baselines": baselines}

    def repeating(self, examples: int) -> float:
        """How often the answer is the current symbol, on so many examples."""
        task, length = self.config.task, self.config.data.sequence_length
        options = {name: task[name] for name in ("vocab_size", "hops", "asked")}
        batch = k_hop.examples(np.arange(examples), sequence_length=length, **options)
        same = batch["weights"] * (batch["targets"] == batch["tokens"])
        return round(float(same.sum() / max(batch["weights"].sum(), 1)), 4)

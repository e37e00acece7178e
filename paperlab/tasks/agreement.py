"""Subject and verb: a language model of drawn sentences must hold the verb's right form more probable than the wrong one.

The objective is that of language modelling; `verb_accuracy` ranks the two forms. Splits "attractors_K" are validation sentences
with K nouns of the other number between subject and verb. Models that ponder draw how long over some sentences (`ponder.png`).
Source: data/synthetic/agreement.py.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.data.synthetic import agreement
from paperlab.errors import ConfigError
from paperlab.limits import at_least, between
from paperlab.tasks import language_modelling
from paperlab.tasks._drawn import check_splits, number_in
from paperlab.tasks._integers import IntegerTask

DEFAULTS = {**language_modelling.DEFAULTS, "nouns": agreement.MOST, "validation_examples": 512}
LIMITS = {
    **language_modelling.LIMITS,
    "nouns": between(0, agreement.MOST, "between subject and verb"),
    "validation_examples": at_least(1),
}
SHOWN = 4  # sentences


def make(config: Any) -> "Agreement":
    """The task that `config` describes."""
    return Agreement(config)


def check(config: Any) -> None:
    """Raises ConfigError for options that do not go together, and for evaluators of a split that there is not."""
    task = config.task
    agreement.check(task.nouns, agreement.ANY, config.data.sequence_length)
    if task.carry_state:
        raise ConfigError("config.task.carry_state=True: sentences do not go on from row to row; say False")
    check_splits(config, "attractors", task.nouns)


class Agreement(IntegerTask):
    """Language modelling of sentences, with the rank of two forms of the verb."""

    def __init__(self, config: Any):
        self.config, self.carry_state = config, False
        check(config)

    @property
    def vocab_size(self) -> int:
        return len(agreement.WORDS)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one global training batch."""
        rows = jax.ShapeDtypeStruct((self.config.data.batch_size,), jnp.int32)
        return {**super().batch_spec(), "verb": rows, "wrong": rows}

    def metrics(self, logits: Any, nll_BxT: Any, batch: dict) -> language_modelling.Metrics:
        rows = jnp.arange(logits.shape[0])
        said = logits[rows, batch["verb"]]
        right, wrong = said[rows, batch["targets"][rows, batch["verb"]]], said[rows, batch["wrong"]]
        verbs = ((right > wrong).sum().astype(jnp.float32), jnp.asarray(len(rows), jnp.float32))
        return {**super().metrics(logits, nll_BxT, batch), "verb_accuracy": verbs}

    def chance(self) -> float:
        """Of the verb's two forms."""
        return 0.5

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        attractors = number_in(split, "attractors")
        options = {"nouns": self.config.task.nouns, "attractors": agreement.ANY if attractors is None else attractors}
        kept = split if split == "train" else "validation"
        return self.batches(agreement.examples, kept, process_index, process_count, **options)

    def show(self, params: Any, state: Any, workdir: Path) -> dict[str, Any]:
        """Writes `ponder.png` where the model's positions choose their steps."""
        if not getattr(self.model, "adds_to_loss", False):
            return {}
        import matplotlib.pyplot as plt

        from paperlab.tasks._ponder import draw

        length = self.config.data.sequence_length
        batch = agreement.examples(np.arange(SHOWN), seed=1, nouns=3, sequence_length=length)
        _, shown = jax.jit(lambda p, x: self.model.apply(p, x, mutable=["intermediates"]))(params, batch["tokens"])
        (steps,) = shown["intermediates"]["ponder"]
        said = [agreement.spelled(row) for row in batch["tokens"]]
        rows = [(["begin", *words], np.asarray(n)[: len(words) + 1]) for words, n in zip(said, steps, strict=True)]
        figure = draw(rows, batch["verb"].tolist())
        figure.savefig(workdir / "ponder.png")
        plt.close(figure)
        return {"ponder": "ponder.png"}

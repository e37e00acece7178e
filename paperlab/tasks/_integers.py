"""What tasks made of integers have in common: language modelling without text, told by loss and accuracy.

A task of this kind says its vocabulary, makes its batches from `paperlab.data.synthetic` and names what guessing would score.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from paperlab.data.synthetic import addressed
from paperlab.tasks import language_modelling


class IntegerTask(language_modelling.LanguageModelling):
    """`data` is left to the task, and `vocab_size` where its section does not say it; positions with weight 0 are not asked."""

    @cached_property
    def vocab_size(self) -> int:
        return self.config.task.vocab_size

    @property
    def tokenizer(self) -> None:
        """Tokens are integers; there is no text."""
        return None

    def batches(
        self,
        examples: addressed.Examples,
        split: str,
        process_index: int,
        process_count: int,
        *,
        sequence_length: int = 0,
        **options: Any,
    ) -> Any:
        """`addressed.batches` with the rows, seed and (unless given) length of the data section."""
        task, data = self.config.task, self.config.data
        return addressed.batches(
            examples,
            split,
            batch_size=data.batch_size,
            seed=data.shuffle_seed,
            validation_examples=task.validation_examples,
            sequence_length=sequence_length or data.sequence_length,
            process_index=process_index,
            process_count=process_count,
            **options,
        )

    def metrics(self, logits: Any, nll_BxT: Any, batch: dict) -> language_modelling.Metrics:
        found = super().metrics(logits, nll_BxT, batch)
        return {name: found[name] for name in ("loss", "accuracy")}

    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.vocab_size

    def summary(self) -> dict[str, Any]:
        """What guessing would score."""
        return {"baselines": {"chance_accuracy": self.chance()}}

    def show(self, params: Any, state: Any, workdir: Path) -> dict[str, Any]:
        """Nothing to read in integers."""
        return {}

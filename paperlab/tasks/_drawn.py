"""What tasks of drawn rows have in common: batches by number, and splits that fix one number, such as "length_24"."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paperlab.data.synthetic import addressed
from paperlab.errors import ConfigError

RNGS = ("dropout", "positions", "halting")


def number_in(split: str, word: str) -> int | None:
    """N of a split "<word>_N"; None for another split."""
    found = re.fullmatch(rf"{word}_(\d+)", split)
    return int(found[1]) if found else None


def check_splits(config: Any, word: str, most: int | None = None) -> None:
    """Raises ConfigError for evaluators of another split than "validation" and "<word>_N", N at most `most`."""
    for name, evaluator in config.get("evaluators", {}).items():
        number = number_in(evaluator.split, word)
        if evaluator.split != "validation" and (number is None or (most is not None and number > most)):
            up_to = "such as 6" if most is None else f"from 0 to {most}"
            raise ConfigError(
                f"config.evaluators.{name}.split={evaluator.split!r}: choose validation or {word}_N, N {up_to}"
            )


def rngs_of(key: jax.Array) -> dict[str, jax.Array]:
    """A key for everything that a model draws in training."""
    return dict(zip(RNGS, jax.random.split(key, len(RNGS)), strict=True))


class DrawnRows:
    """A task says `examples(indices_B, *, seed, **options)` and `options(split)`; the rest of its data follows."""

    config: Any
    model: Any
    tokenizer = None

    @property
    def sharding(self) -> tuple:
        return self.model.sharding()

    def examples(self, indices_B: np.ndarray, *, seed: int = 0, **options: Any) -> dict[str, np.ndarray]:
        """The examples of these numbers as a batch."""
        raise TypeError(f"{type(self).__name__} does not say its examples")

    def options(self, split: str) -> Mapping[str, Any]:
        """What `examples` takes for a split."""
        raise TypeError(f"{type(self).__name__} does not say its options")

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one global training batch."""
        one, rows = self.examples(np.arange(1), **self.options("train")), self.config.data.batch_size
        return {name: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype) for name, a in one.items()}

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        """Endless batches for "train", one pass over rows that training never sees for any other split."""
        return addressed.batches(
            self.examples,
            split if split == "train" else "validation",
            batch_size=self.config.data.batch_size,
            seed=self.config.data.shuffle_seed,
            validation_examples=self.config.task.validation_examples,
            process_index=process_index,
            process_count=process_count,
            **self.options(split),
        )

    def show(self, params: Any, state: Any, workdir: Path) -> dict[str, Any]:
        """Nothing to read in integers."""
        return {}

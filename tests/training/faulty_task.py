"""The tiny task with batches that go wrong, and as a program of its own, to be killed by its tests.

    python -m tests.training.faulty_task WORKDIR [section__field=value ...]
    PROCESS=0 PROCESSES=2 COORDINATOR=localhost:1234 python -m ...              the same, one of several processes

It trains to step 12 with batch 5 holding a NaN, and pauses for a moment after every step.
"""

import os
import sys
import time
from typing import Any

import grain
import numpy as np

from tests.training.tiny_task import ROWS, TinyTask, draw, tiny_config


class FaultyTask(TinyTask):
    """Training batches in `nan` hold a NaN, those in `wild` targets a thousand times too large; `left_out` do not exist."""

    def __init__(self, *, nan: tuple = (), wild: tuple = (), left_out: tuple = (), rows: int = ROWS):
        super().__init__(rows)
        self.nan, self.wild, self.left_out = set(nan), set(wild), left_out

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        if split != "train":
            return super().data(split, process_index, process_count)
        rows = self.rows // process_count
        mine = slice(process_index * rows, (process_index + 1) * rows)
        there = [i for i in range(400) if i not in self.left_out]
        return grain.MapDataset.source(there).map(lambda i: {k: v[mine] for k, v in self.batch(i).items()}).repeat()

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """Batch `index` of the training split."""
        batch = draw(index, self.rows)
        factor = np.float32(np.nan if index in self.nan else 1000 if index in self.wild else 1)
        return {**batch, "y": batch["y"] * factor, "weights": np.maximum(batch["weights"], 1)}


def typed(text: str) -> Any:
    """The text as a number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main() -> None:
    """Trains; prints a line a step."""
    from paperlab.training.loop import train

    if "PROCESSES" in os.environ:
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        where = os.environ["COORDINATOR"]
        jax.distributed.initialize(where, int(os.environ["PROCESSES"]), int(os.environ["PROCESS"]))
    workdir, *changes = sys.argv[1:]
    options = {name: typed(value) for name, _, value in (change.partition("=") for change in changes)}

    def on_step(step: int, state: Any) -> None:
        print(f"at {step}", flush=True)
        time.sleep(0.05)

    train(tiny_config(train__steps=12, **options), workdir, FaultyTask(nan=(5,)), on_step=on_step)


if __name__ == "__main__":
    main()

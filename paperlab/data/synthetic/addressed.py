"""What all synthetic tasks share: random numbers by counting, and batches that are a function of their number.

Example i of a split is a function of (seed, split, i): random numbers come from hashing counters, not from a generator, so any
process makes any batch, in any order, alone.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from paperlab.errors import ConfigError

if TYPE_CHECKING:
    import grain

SPLITS = ("train", "validation")
ASKED = ("last", "all")  # the last place of a sequence alone, or every place that has an answer
Examples = Callable[..., dict[str, np.ndarray]]


def streams(indices_B: np.ndarray, seed: int) -> np.ndarray:
    """One stream of random numbers for each example number: uint64 [B]."""
    return mix(np.asarray(indices_B, np.uint64) + mix(np.array([seed % 2**64], np.uint64)))


def uniform(streams_B: np.ndarray, count: int, lane: int) -> np.ndarray:
    """Uniform numbers in [0, 1): float64 [B, count], a function of the stream, the lane and the column."""
    counters = np.arange(count, dtype=np.uint64) + np.uint64(lane << 32)
    return (mix(streams_B[:, None] + mix(counters)) >> np.uint64(11)) * 2.0**-53


def integers(streams_B: np.ndarray, count: int, below: int, lane: int) -> np.ndarray:
    """Whole numbers from 0 to `below` - 1, int32 [B, count]."""
    return (uniform(streams_B, count, lane) * below).astype(np.int32)


def check_asked(asked: str) -> None:
    """Raises ConfigError for another word than those of ASKED."""
    if asked not in ASKED:
        raise ConfigError(f"config.task.asked={asked!r}: choose one of {', '.join(ASKED)}")


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64, the finaliser."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def packed(tokens_BxT: np.ndarray, targets_BxT: np.ndarray, asked_BxT: np.ndarray) -> dict[str, np.ndarray]:
    """A batch as the language-modelling task reads it: one document a row; weights are 1 where `asked`, elsewhere targets are 0."""
    B, T = tokens_BxT.shape
    return {
        "tokens": tokens_BxT.astype(np.int32),
        "targets": np.where(asked_BxT, targets_BxT, 0).astype(np.int32),
        "weights": asked_BxT.astype(np.float32),
        "segment_ids": np.zeros((B, T), np.int32),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)).copy(),
        "bytes": np.zeros((B, T), np.float32),
    }


def batches(
    examples: Examples,
    split: str,
    *,
    batch_size: int,
    validation_examples: int = 1024,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    **task: Any,
) -> "grain.MapDataset":
    """Endless training batches, or `validation_examples` (rounded up to whole batches) that training never sees.

    Args:
      examples: (indices_B, seed=, **task) -> a batch.
      split: "train" or "validation".
      batch_size: rows of all processes together; process p of P gets the p-th P-th of each batch.
      validation_examples: size of the validation split.
      seed, task: of `examples`.
      process_index, process_count: p and P.

    Raises:
      ConfigError: another split, a batch that the processes can't share, and what `examples` raises.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"config.data.batch_size={batch_size}: give a positive multiple of {process_count} processes")
    import grain

    seed_of_split = 2 * seed + SPLITS.index(split)
    rows = np.arange(batch_size)[process_index * batch_size // process_count :][: batch_size // process_count]
    examples(rows[:1], seed=seed_of_split, **task)
    length = sys.maxsize if split == "train" else -(-validation_examples // batch_size)
    return grain.MapDataset.range(length).map(lambda i: examples(i * batch_size + rows, seed=seed_of_split, **task))

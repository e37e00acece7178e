"""Multi-query associative recall (Zoology, arXiv 2312.04927; task of Figure 4 in arXiv 2312.06635).

    k_1 v_1 k_2 v_2 ... k_P v_P  x x k_2 x x x k_1 x ...        at the second k_j the model must say v_j

Keys are drawn from 1 .. V/2 - 1 and values from V/2 .. V - 1, each without repetition. Query j stands at place
2 P + 2 g_j, the gaps g without repetition with p(g) ~ (g + 1)^(power - 1): most queries come early. The other places x
are random tokens (any of V, as in the paper's code), or 0.

Example i of a split is a function of (seed, split, i): random numbers come from hashing counters, not from a generator.
"""

from typing import TYPE_CHECKING

import numpy as np

from paperlab.data.synthetic import addressed
from paperlab.errors import ConfigError

if TYPE_CHECKING:
    import grain


def examples(
    indices_B: np.ndarray,
    *,
    seed: int = 0,
    vocab_size: int = 64,
    sequence_length: int = 64,
    num_pairs: int = 8,
    min_pairs: int = 0,
    power: float = 0.01,
    random_filler: bool = True,
) -> dict[str, np.ndarray]:
    """The examples `indices_B` as a batch: tokens, targets, weights, segment_ids, positions, bytes [B, T].

    Args:
      indices_B: example numbers.
      seed: one seed is one endless set of examples.
      vocab_size: V, keys and values together; the paper uses 8192.
      sequence_length: T, even, at least 4 `num_pairs`.
      num_pairs: P.
      min_pairs: if not 0, every example draws its own P from `min_pairs` to `num_pairs`.
      power: 1 spreads the queries evenly; towards 0 they follow the pairs ever closer.
      random_filler: random tokens between the queries, else 0.

    Returns:
      int32 and float32 arrays; weights are 1 at the queries and 0 elsewhere, where targets are 0; bytes are 0.
    """
    check(vocab_size, sequence_length, num_pairs, min_pairs, power)
    B, T = len(indices_B), sequence_length
    streams_B = addressed.streams(indices_B, seed)
    pairs_B = np.full(B, num_pairs)
    if min_pairs:
        pairs_B = min_pairs + (addressed.uniform(streams_B, 1, 0)[:, 0] * (num_pairs - min_pairs + 1)).astype(int)
    tokens_BxT = np.zeros((B, T), np.int32)
    if random_filler:
        tokens_BxT = (addressed.uniform(streams_B, T, 1) * vocab_size).astype(np.int32)
    targets_BxT, weights_BxT = np.zeros((B, T), np.int32), np.zeros((B, T), np.float32)
    for P in np.unique(pairs_B):
        rows = np.flatnonzero(pairs_B == P)
        _write(tokens_BxT, targets_BxT, weights_BxT, rows, streams_B[rows], int(P), vocab_size, power)
    return addressed.packed(tokens_BxT, targets_BxT, weights_BxT > 0)


def batches(
    split: str,
    *,
    batch_size: int,
    validation_examples: int = 1024,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    **task: int | float | bool,
) -> "grain.MapDataset":
    """Endless training batches, or `validation_examples` (rounded up to whole batches) that training never sees.

    Args:
      split: "train" or "validation".
      batch_size: rows of all processes together; process p of P gets the p-th P-th of each batch.
      validation_examples: size of the validation split.
      seed, task: as in `examples`.
      process_index, process_count: p and P.
    """
    return addressed.batches(
        examples,
        split,
        batch_size=batch_size,
        validation_examples=validation_examples,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        **task,
    )


def _write(
    tokens: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    rows: np.ndarray,
    streams: np.ndarray,
    P: int,
    V: int,
    power: float,
) -> None:
    """Writes P pairs and their queries into `rows`."""
    T = tokens.shape[1]
    keys = 1 + _distinct(streams, np.ones(V // 2 - 1), P, 2)
    values = V // 2 + _distinct(streams, np.ones(V - V // 2), P, 3)
    gaps = _distinct(streams, np.arange(1, (T - 2 * P) // 2 + 1) ** (power - 1.0), P, 4)
    queries, row = 2 * P + 2 * gaps, rows[:, None]
    tokens[row, 2 * np.arange(P)] = keys
    tokens[row, 2 * np.arange(P) + 1] = values
    tokens[row, queries] = keys
    targets[row, queries] = values
    weights[row, queries] = 1


def _distinct(streams_B: np.ndarray, odds_N: np.ndarray, count: int, lane: int) -> np.ndarray:
    """`count` different numbers below N a row, drawn one after the other with the given odds: int [B, count].

    The order of arrival of N exponential clocks with rates `odds_N` (Efraimidis and Spirakis 2006).
    """
    clocks = -np.log1p(-addressed.uniform(streams_B, len(odds_N), lane)) / odds_N
    first = np.argpartition(clocks, count - 1, axis=1)[:, :count] if count < len(odds_N) else np.argsort(clocks, axis=1)
    return np.take_along_axis(first, np.argsort(np.take_along_axis(clocks, first, 1), axis=1), axis=1)


def check(vocab_size: int, sequence_length: int, num_pairs: int, min_pairs: int, power: float) -> None:
    """Raises ConfigError for sizes of `examples` that do not go together."""
    if num_pairs < 1 or not 0 <= min_pairs <= num_pairs:
        raise ConfigError(
            f"config.task.num_pairs={num_pairs}, config.task.min_pairs={min_pairs}: "
            "give 0 <= min_pairs <= num_pairs, num_pairs >= 1"
        )
    if sequence_length % 2 or sequence_length < 4 * num_pairs:
        raise ConfigError(
            f"config.data.sequence_length={sequence_length}: {num_pairs} pairs with queries take an even length >= {4 * num_pairs}"
        )
    if vocab_size // 2 - 1 < num_pairs:
        raise ConfigError(
            f"config.task.vocab_size={vocab_size}: {num_pairs} different keys and values take at least {2 * num_pairs + 2}"
        )
    if power <= 0:
        raise ConfigError(f"config.task.power={power}: give a positive number (1 = even, 0.01 = as in the paper)")

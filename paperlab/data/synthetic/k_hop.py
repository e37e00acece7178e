"""k-hop induction: go back to where the current symbol stood last, take the symbol after it, and again, k times.

    find(i) = the place after the last earlier occurrence of x_i;   hop_k(i) = x at find(find(... find(i)))

One hop is the induction head's task. Source: Transformers, parallel computation, and logarithmic depth (arXiv 2402.09268),
section 4; ParaRNN (arXiv 2510.21450), Table 6 (one hop over 10 symbols, two over 5, length 100).
"""

import numpy as np

from paperlab.data.synthetic import addressed
from paperlab.errors import ConfigError


def examples(
    indices_B: np.ndarray,
    *,
    seed: int = 0,
    vocab_size: int = 10,
    hops: int = 1,
    asked: str = "last",
    sequence_length: int = 100,
) -> dict[str, np.ndarray]:
    """The examples `indices_B` as a batch: tokens, targets, weights, segment_ids, positions, bytes [B, T].

    Args:
      indices_B: example numbers.
      seed: one seed is one endless set of examples.
      vocab_size: symbols, drawn evenly.
      hops: k.
      asked: "last", the last place alone, or "all" places; never those from which k hops lead nowhere.
      sequence_length: T.
    """
    check(hops, asked)
    tokens = addressed.integers(addressed.streams(indices_B, seed), sequence_length, vocab_size, 0)
    once = find(tokens, vocab_size)
    place = np.broadcast_to(np.arange(sequence_length), tokens.shape)
    for _ in range(hops):
        place = np.where(place >= 0, np.take_along_axis(once, np.maximum(place, 0), 1), -1)
    wanted = place >= 0
    if asked == "last":
        wanted = wanted & (np.arange(sequence_length) == sequence_length - 1)
    return addressed.packed(tokens, np.take_along_axis(tokens, np.maximum(place, 0), 1), wanted)


def find(tokens_BxT: np.ndarray, vocab_size: int) -> np.ndarray:
    """For every place the one after the last earlier occurrence of its symbol, -1 where there is none: int [B, T]."""
    B, T = tokens_BxT.shape
    rows, found = np.arange(B), np.empty((B, T), int)
    after = np.full((B, vocab_size), -1)
    for t in range(T):
        found[:, t] = after[rows, tokens_BxT[:, t]]
        after[rows, tokens_BxT[:, t]] = t + 1
    return found


def check(hops: int, asked: str) -> None:
    """Raises ConfigError for options of `examples` out of range."""
    addressed.check_asked(asked)
    if hops < 1:
        raise ConfigError(f"config.task.hops={hops}: must be at least 1")

"""Keep the n-th: which symbol stood at place n of a random sequence?

    x_1 x_2 ... x_n ... x_T    at the last place, or at every place from n on, the model must say x_n

Nothing marks place n: the model must count to it, store one symbol and let nothing that follows overwrite it. Source: ParaRNN
(arXiv 2510.21450), Table 6 (n = 5, 128 symbols, length 100); its text does not say at which places the answer is asked.
"""

import numpy as np

from paperlab.data.synthetic import addressed
from paperlab.errors import ConfigError


def examples(
    indices_B: np.ndarray,
    *,
    seed: int = 0,
    vocab_size: int = 128,
    keep: int = 5,
    asked: str = "last",
    sequence_length: int = 100,
) -> dict[str, np.ndarray]:
    """The examples `indices_B` as a batch: tokens, targets, weights, segment_ids, positions, bytes [B, T].

    Args:
      indices_B: example numbers.
      seed: one seed is one endless set of examples.
      vocab_size: symbols, drawn evenly.
      keep: n, counted from 1.
      asked: "last", the last place alone, or "all", every place from n on.
      sequence_length: T, at least n.
    """
    check(keep, asked, sequence_length)
    tokens = addressed.integers(addressed.streams(indices_B, seed), sequence_length, vocab_size, 0)
    first = keep - 1 if asked == "all" else sequence_length - 1
    wanted = np.broadcast_to(np.arange(sequence_length) >= first, tokens.shape)
    return addressed.packed(tokens, np.broadcast_to(tokens[:, keep - 1 : keep], tokens.shape), wanted)


def check(keep: int, asked: str, sequence_length: int) -> None:
    """Raises ConfigError for sizes of `examples` that do not go together."""
    addressed.check_asked(asked)
    if not 1 <= keep <= sequence_length:
        raise ConfigError(f"config.task.keep={keep}: must be from 1 to config.data.sequence_length={sequence_length}")

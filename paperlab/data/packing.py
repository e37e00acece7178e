"""Concatenate and cut: windows of T tokens over a stream of L, batch i a function of i alone.

    window g:  inputs = stream[g T : g T + T],  targets = stream[g T + 1 : g T + T + 1],  g < n = ceil((L - 1) / T)

    shuffled     batch i = windows pi(i B), ..., pi(i B + B - 1), pi a new permutation of the n windows each epoch
    contiguous   row r of batch i = window (r W + i) mod B W,  W = ceil(n / B): row r of batch i + 1 continues row r

Every token of every document is a target exactly once a pass. Weights are 0 where the target is a separator or lies
beyond the end. Segment ids number the documents, so they change exactly at document borders, also across batches.
Finite passes (validation) always use the contiguous layout: a recurrent state may be carried from batch to batch, and
the first few batches already see all parts of the split.
"""

import sys
from typing import TYPE_CHECKING

import numpy as np

from paperlab.data.stream import Stream
from paperlab.errors import ConfigError

if TYPE_CHECKING:
    import grain

    from paperlab.data.text import Corpus

ORDERS = ("shuffled", "contiguous")


def batches(
    corpus: "Corpus",
    split: str,
    *,
    sequence_length: int,
    batch_size: int,
    order: str = "shuffled",
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    repeat: bool | None = None,
) -> "grain.MapDataset":
    """Batches of one split: dicts of numpy arrays [B / process_count, T].

    Keys: tokens, targets, segment_ids, positions (int32), weights, bytes (float32).

    Args:
      corpus: from `open_corpus`.
      split: "train" or "validation".
      sequence_length: T.
      batch_size: B, rows of all processes together; process p gets rows [p B/P, (p + 1) B/P) of the same batch.
      order: "shuffled" or "contiguous"; see the module. Finite passes are contiguous.
      seed: of the shuffle.
      process_index, process_count: p and P.
      repeat: endless passes; by default for "train" only. A finite pass has `len(...) = ceil(n / B)` batches.

    Raises:
      ConfigError: if a size is not positive, B % P != 0, or the split is empty.
    """
    _check(sequence_length, batch_size, order, process_index, process_count)
    import grain

    stream = corpus.split(split)
    repeat = split == "train" if repeat is None else repeat
    T, B, n = sequence_length, batch_size, window_count(stream, sequence_length)
    rows = slice(process_index * B // process_count, (process_index + 1) * B // process_count)
    if repeat and order == "shuffled":
        order_of_windows = grain.MapDataset.range(n).shuffle(seed=seed % 2**32).repeat(None)
        by_batch = (
            order_of_windows.batch(B) if B > 1 else order_of_windows.map(np.atleast_1d)
        )  # grain cannot count 2^63 ones
        return by_batch.map(lambda windows_B: cut(stream, windows_B[rows], T))
    W = -(-n // B)
    starts_R = np.arange(B, dtype=np.int64)[rows] * W

    def contiguous(i: int) -> dict[str, np.ndarray]:
        passes_R, windows_R = np.divmod(starts_R + i, B * W)
        return cut(stream, windows_R, T, lap_R=passes_R)

    return grain.MapDataset.range(sys.maxsize if repeat else W).map(contiguous)


def window_count(stream: Stream, sequence_length: int) -> int:
    """Windows that it takes to make every token of the stream a target."""
    return -(-(len(stream) - 1) // sequence_length)


def cut(
    stream: Stream, windows_B: np.ndarray, sequence_length: int, *, lap_R: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The windows `windows_B` of a stream as one batch.

    Args:
      stream: the split.
      windows_B: window numbers, any int; those beyond the end are all padding (weight 0).
      sequence_length: T.
      lap_R: how often each row has passed the end of the stream; keeps the segment ids of two laps apart.
    """
    T = sequence_length
    positions_BxT1 = np.asarray(windows_B, np.int64)[:, None] * T + np.arange(T + 1)
    cells = stream.read(positions_BxT1)
    segments = cells.segments[:, :-1]
    if lap_R is not None:
        segments = segments + ((lap_R % 2) * (stream.documents + 1)).astype(np.int32)[:, None]
    return {
        "tokens": cells.tokens[:, :-1],
        "targets": cells.tokens[:, 1:],
        "segment_ids": segments,
        "positions": cells.positions[:, :-1],
        "weights": cells.predicted[:, 1:].astype(np.float32),
        "bytes": cells.bytes[:, 1:],
    }


def _check(T: int, B: int, order: str, process_index: int, process_count: int) -> None:
    if T < 1:
        raise ConfigError(f"config.data.sequence_length={T}: give a positive number of tokens")
    if B < 1:
        raise ConfigError(f"config.data.batch_size={B}: give a positive number of rows")
    if order not in ORDERS:
        raise ConfigError(f"config.data.order={order!r}: choose one of {', '.join(ORDERS)}")
    if B % process_count:
        raise ConfigError(
            f"config.data.batch_size={B} does not divide over {process_count} processes: use a multiple of it"
        )
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index={process_index}: there are {process_count} processes")

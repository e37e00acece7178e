"""One split as one long sequence of tokens, every document behind a begin-of-document token.

    stream = BOS d_0[0] d_0[1] ... BOS d_1[0] d_1[1] ...

The separators are not stored: position p belongs to document s with offsets[s] <= p < offsets[s + 1], and is BOS where
p = offsets[s], else tokens[p + shift[s]]. So the tokens may be a memory-mapped file, in any order of documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


class Concatenation:
    """Several one-dimensional arrays (memory-mapped files) that are indexed as one."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = list(arrays)
        self.edges = np.cumsum([0, *(len(a) for a in self.arrays)])

    def __len__(self) -> int:
        return int(self.edges[-1])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Elements at `indices` (any shape), int32."""
        if len(self.arrays) == 1:
            return np.asarray(self.arrays[0][indices], np.int32)
        piece = np.searchsorted(self.edges, indices, side="right") - 1
        out = np.empty(indices.shape, np.int32)
        for k in np.unique(piece):
            here = piece == k
            out[here] = self.arrays[k][indices[here] - self.edges[k]]
        return out


class Cells(NamedTuple):
    """What stands at some positions of a stream; every field has the shape of the positions."""

    tokens: np.ndarray
    segments: np.ndarray  # running index of the document, `len(lengths)` beyond the end
    positions: np.ndarray  # 0 at the document's BOS
    bytes: np.ndarray  # UTF-8 bytes that the token stands for; 0 for BOS and beyond the end
    predicted: np.ndarray  # bool: a token of a document


@dataclass(frozen=True)
class Stream:
    """Documents of one split; see the module for how positions are counted.

    Args:
      tokens: all documents end to end, without separators; unused stretches are allowed.
      begins, lengths: int64 [N], where document n starts in `tokens` and how many tokens it has (>= 1).
      bos: the id of the begin-of-document token.
      table: float32 [V], UTF-8 bytes of each id, used where `counts` is None.
      counts: bytes of every single token, aligned with `tokens` (tokenizers whose ids have no fixed length).
      text: the raw bytes of the documents end to end, or None (token files).
      text_lengths: int64 [N], bytes of each document in `text`.
    """

    tokens: np.ndarray | Concatenation
    begins: np.ndarray
    lengths: np.ndarray
    bos: int
    table: np.ndarray
    counts: np.ndarray | None = None
    text: np.ndarray | None = None
    text_lengths: np.ndarray | None = None

    @cached_property
    def offsets(self) -> np.ndarray:
        """Position of every document's BOS, and the length of the stream: int64 [N + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths + 1)]).astype(np.int64)

    @cached_property
    def _shift(self) -> np.ndarray:
        return np.append(self.begins - self.offsets[:-1] - 1, 0)

    @cached_property
    def _store(self) -> Concatenation:
        return self.tokens if isinstance(self.tokens, Concatenation) else Concatenation([self.tokens])

    def __len__(self) -> int:
        """Tokens with their separators."""
        return int(self.offsets[-1])

    @property
    def documents(self) -> int:
        return len(self.lengths)

    @property
    def text_bytes(self) -> int:
        """Bytes of text; 0 where a token file has no text."""
        return 0 if self.text is None else len(self.text)

    def read(self, positions: np.ndarray) -> Cells:
        """Gathers the stream at `positions` (any shape, >= 0; beyond the end: BOS of a document that is not there)."""
        segments = np.searchsorted(self.offsets, positions, side="right") - 1
        places = positions - self.offsets[segments]
        predicted = (places > 0) & (segments < self.documents)
        indices = np.where(predicted, positions + self._shift[segments], 0)
        tokens = np.where(predicted, self._store.take(indices), self.bos).astype(np.int32)
        sizes = self.table[tokens] if self.counts is None else self.counts[indices]
        sizes = np.where(predicted, sizes, 0).astype(np.float32)
        return Cells(tokens, segments.astype(np.int32), places.astype(np.int32), sizes, predicted)

    def document(self, n: int) -> np.ndarray:
        """Tokens of document n without its BOS, int32."""
        return self._store.take(np.arange(self.begins[n], self.begins[n] + self.lengths[n]))

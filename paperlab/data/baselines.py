"""What a reader would compare a language model's bits per byte with, on the same validation bytes.

    uniform   8
    unigram   - mean log2 p(x_t),            p(x) = (n(x) + 1) / (n + 256)             counted on the training split
    bigram    - mean log2 p(x_t | x_{t-1}),  p(x|y) = (n(y, x) + 1) / (n(y) + 256)     y = begin of document included
    gzip -9, xz -9e   8 (compressed bytes) / (bytes), the documents end to end

`*_entropy_bits_per_byte` are the same two with the validation split's own counts and no smoothing: what no table of
that order can beat.
"""

import gzip
import lzma
from typing import Any

import numpy as np

from paperlab.data.stream import Stream
from paperlab.data.text import Corpus

CHUNK = 1 << 22
START = 256  # what stands before the first byte of a document


def baselines(corpus: Corpus, *, sample_bytes: int = 1 << 22) -> dict[str, Any]:
    """Bits per byte of simple models of the validation text; empty where a corpus has no text (token files).

    Args:
      corpus: from `open_corpus`.
      sample_bytes: gzip and xz compress at most the first so many bytes; `compressed_sample_bytes` says how many.
    """
    train, validation = corpus.train, corpus.validation
    if train.text is None or validation.text is None or not validation.text_bytes:
        return {}
    fitted, seen = bigram_counts(train), bigram_counts(validation)
    sample = validation.text[:sample_bytes].tobytes()
    return {
        "uniform_bits_per_byte": 8.0,
        "unigram_bits_per_byte": _cross_entropy(fitted.sum(0) + 1, seen.sum(0)),
        "bigram_bits_per_byte": _cross_entropy(fitted + 1, seen),
        "unigram_entropy_bits_per_byte": _cross_entropy(seen.sum(0), seen.sum(0)),
        "bigram_entropy_bits_per_byte": _cross_entropy(seen, seen),
        "gzip9_bits_per_byte": 8 * len(gzip.compress(sample, 9, mtime=0)) / len(sample),
        "xz9_bits_per_byte": 8 * len(lzma.compress(sample, preset=9 | lzma.PRESET_EXTREME)) / len(sample),
        "compressed_sample_bytes": len(sample),
    }


def bigram_counts(stream: Stream) -> np.ndarray:
    """How often byte x follows byte y (y = 256: begins a document): int64 [257, 256]."""
    counts = np.zeros(257 * 256, np.int64)
    text, lengths = stream.text, stream.text_lengths
    if text is None or lengths is None or not len(text):
        return counts.reshape(257, 256)
    begins = np.cumsum(lengths) - lengths
    for start in range(0, len(text), CHUNK):
        chunk = text[start : start + CHUNK].astype(np.int32)
        before = np.concatenate([text[max(start - 1, 0) : max(start, 1)], text[start : start + CHUNK - 1]])
        before = before[: len(chunk)].astype(np.int32)
        first, last = np.searchsorted(begins, [start, start + len(chunk)])
        before[begins[first:last] - start] = START
        counts += np.bincount(before * 256 + chunk, minlength=257 * 256)
    return counts.reshape(257, 256)


def _cross_entropy(model: np.ndarray, seen: np.ndarray) -> float:
    """Bits per symbol of `seen` counts [..., 256] under the conditional frequencies of `model` counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.log2(model / model.sum(-1, keepdims=True))
    return float((seen * np.where(seen > 0, bits, 0)).sum() / seen.sum())

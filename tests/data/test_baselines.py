"""Baselines against closed forms on corpora whose entropies are known."""

import gzip
import lzma

import numpy as np
import pytest

from paperlab.data import baselines as module
from paperlab.data.baselines import baselines, bigram_counts
from paperlab.data.stream import Stream
from paperlab.data.text import Corpus
from paperlab.data.tokenizers import IdTokenizer
from tests.data.conftest import corpus_of, stream_of


def test_closed_forms():
    """Train: 'ab' 100 times as one document. Validation: 'abab'."""
    got = baselines(corpus_of([b"ab" * 100], [b"abab"]))
    assert got["uniform_bits_per_byte"] == 8
    assert got["unigram_bits_per_byte"] == pytest.approx(-np.log2(101 / 456))
    first, after_a, after_b = 2 / 257, 101 / 356, 100 / 355
    want = -(np.log2(first) + 2 * np.log2(after_a) + np.log2(after_b)) / 4
    assert got["bigram_bits_per_byte"] == pytest.approx(want)
    assert got["unigram_entropy_bits_per_byte"] == pytest.approx(1)
    assert got["bigram_entropy_bits_per_byte"] == pytest.approx(0)


def test_random_bytes_have_eight_bits():
    noise = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
    got = baselines(corpus_of([noise[:150_000]], [noise[150_000:]]))
    assert got["unigram_bits_per_byte"] == pytest.approx(8, abs=0.01)
    assert got["gzip9_bits_per_byte"] > 8
    assert got["xz9_bits_per_byte"] > 8


def test_compressors_see_the_documents_end_to_end():
    documents = [b"some text, ", b"more text, ", b"some more text"] * 20
    got = baselines(corpus_of([b"a"], documents))
    joined = b"".join(documents)
    assert got["gzip9_bits_per_byte"] == 8 * len(gzip.compress(joined, 9)) / len(joined)
    xz = lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)
    assert got["xz9_bits_per_byte"] == 8 * len(xz) / len(joined)
    assert got["compressed_sample_bytes"] == len(joined)
    assert baselines(corpus_of([b"a"], documents), sample_bytes=100)["compressed_sample_bytes"] == 100


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 22])
def test_bigrams_are_counted_once_whatever_the_chunk(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    documents = [b"abc", b"a", b"bcab", b"ca"]
    want = np.zeros((257, 256), int)
    for d in documents:
        for y, x in zip([256, *d[:-1]], d, strict=True):
            want[y, x] += 1
    np.testing.assert_array_equal(bigram_counts(stream_of(documents)), want)


def test_token_files_have_no_baselines():
    bare = Stream(np.arange(4), np.array([0]), np.array([4]), 4, np.zeros(5, np.float32))
    assert baselines(Corpus(bare, bare, IdTokenizer(5, 4), 5, "", "tokens")) == {}

"""A corpus: documents of text, tokenised, in two splits.

    open_corpus(config.data) -> Corpus(train, validation, tokenizer, vocab_size, digest)
    batches(corpus, "train", sequence_length=T, batch_size=B) -> grain.MapDataset

`digest` is sha256 over the names, lengths and contents of all documents (or over the token files) with their split:
equal digests mean equal data. `vocab_size(config.data)` tells the size without the data where it can.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paperlab.data import DEFAULTS, LIMITS
from paperlab.data.cache import cached
from paperlab.data.documents import Document
from paperlab.data.packing import batches
from paperlab.data.sources import read_documents
from paperlab.data.stream import Stream
from paperlab.data.token_files import names_token_files, open_token_files
from paperlab.data.tokenizers import ByteTokenizer, Tokenizer, open_tokenizer
from paperlab.errors import ConfigError
from paperlab.limits import did_you_mean, hold

__all__ = ["Corpus", "batches", "open_corpus", "open_tokenizer_of", "vocab_size"]

CACHE_FORMAT = "tokens-1"


@dataclass(frozen=True)
class Corpus:
    """Two streams of tokens and what made them."""

    train: Stream
    validation: Stream
    tokenizer: Tokenizer
    vocab_size: int  # >= tokenizer.vocab_size
    digest: str
    source: str

    def split(self, name: str) -> Stream:
        """The stream of a split; an unknown or empty one is an error that says how to mend it."""
        if name not in ("train", "validation"):
            raise ConfigError(f"split {name!r}: choose one of train, validation")
        stream = self.train if name == "train" else self.validation
        if not stream.documents:
            raise ConfigError(
                f"the {name} split of {self.source} is empty: give config.data.validation_path or a "
                "config.data.validation_share > 0"
            )
        return stream

    def summary(self) -> dict[str, Any]:
        """What a reader must know to have the same data: sizes, counts, digest."""
        sizes = {
            name: {"documents": s.documents, "tokens": len(s) - s.documents, "bytes": s.text_bytes}
            for name, s in (("train", self.train), ("validation", self.validation))
        }
        total = sum(split["bytes"] for split in sizes.values())
        return {"source": self.source, "sha256": self.digest, "bytes": total, "vocab_size": self.vocab_size, **sizes}


def open_corpus(data: Mapping[str, Any] | ConfigDict) -> Corpus:
    """Reads, splits and tokenises what the `data` section of a config names.

    Raises:
      ConfigError: one line that names the field or file and says how to mend it.
    """
    data = _checked(data)
    source = data.path or (data.source if data.source != "hf" else f"hf:{data.hf_name}")
    if names_token_files(data):
        train, validation, tokenizer, digest = open_token_files(data)
    else:
        tokenizer = open_tokenizer(data.tokenizer)
        documents = read_documents(data)
        digests = [_digest(d) for d in documents]
        train, validation = (_tokenised(*pair, tokenizer, data) for pair in zip(documents, digests, strict=True))
        digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        if not train.documents:
            raise ConfigError(f"config.data.tokenizer={data.tokenizer} makes no token of the text of {source}")
    return Corpus(train, validation, tokenizer, _widened(data, tokenizer.vocab_size), digest, source)


def vocab_size(data: Mapping[str, Any] | ConfigDict) -> int:
    """`data.vocab_size`, else the tokenizer's, without reading the corpus (token files: their sidecar)."""
    data = _checked(data)
    return data.vocab_size or open_tokenizer_of(data).vocab_size


def open_tokenizer_of(data: Mapping[str, Any] | ConfigDict) -> Tokenizer:
    """The tokenizer of a corpus, without reading the corpus (token files: their sidecar)."""
    data = _checked(data)
    if names_token_files(data):
        return open_token_files(data, only_tokenizer=True)[2]
    return open_tokenizer(data.tokenizer)


def _checked(data: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    unknown = [] if isinstance(data, ConfigDict) else [name for name in data if name not in DEFAULTS]
    if unknown:
        raise ConfigError(f"there is no field config.data.{unknown[0]}; {did_you_mean(unknown[0], DEFAULTS)}")
    data = ConfigDict({**DEFAULTS, **dict(data)})
    hold(dict(data), LIMITS, "config.data.")
    return data


def _widened(data: ConfigDict, known: int) -> int:
    if 0 < data.vocab_size < known:
        raise ConfigError(
            f"config.data.vocab_size={data.vocab_size} is smaller than the tokenizer's {known}: give 0 or more"
        )
    return data.vocab_size or known


def _tokenised(documents: list[Document], digest: str, tokenizer: Tokenizer, data: ConfigDict) -> Stream:
    text = np.frombuffer(b"".join(d.content for d in documents), np.uint8)
    sizes = np.array([len(d.content) for d in documents], np.int64)
    table = tokenizer.bytes_per_token()
    if isinstance(tokenizer, ByteTokenizer):
        return Stream(text, _begins(sizes), sizes, tokenizer.bos, table, None, text, sizes)
    definition = hashlib.sha256(repr(sorted(tokenizer.state().items())).encode()).hexdigest()
    arrays = cached(data.cache_dir, f"{CACHE_FORMAT} {definition} {digest}", lambda: _encode(documents, tokenizer))
    kept = arrays["lengths"] > 0
    lengths = np.asarray(arrays["lengths"])[kept]
    return Stream(arrays["tokens"], _begins(lengths), lengths, tokenizer.bos, table, arrays["counts"], text, sizes)


def _encode(documents: Iterable[Document], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """All tokens end to end, the bytes of each, and the tokens of each document (0 where a text has none)."""
    tokens, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.uint32)]
    for document in documents:
        try:
            ids, sizes = tokenizer.encode_document(document.content)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{document.name} is not UTF-8 (byte {error.start}): convert it, or use config.data.tokenizer=bytes"
            ) from None
        tokens.append(ids)
        counts.append(sizes)
    small = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    lengths = np.array([len(t) for t in tokens[1:]], np.int64)
    return {"tokens": np.concatenate(tokens).astype(small), "counts": np.concatenate(counts), "lengths": lengths}


def _begins(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _digest(documents: Iterable[Document]) -> str:
    total = hashlib.sha256()
    for d in documents:
        total.update(f"{d.name}\0{len(d.content)}\0".encode("utf-8", "surrogateescape"))
        total.update(d.content)
    return total.hexdigest()

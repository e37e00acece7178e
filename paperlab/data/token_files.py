"""Token files: .bin, plain little-endian uint16 or uint32 ids, memory-mapped, documents cut at the end-of-document id.

Beside `name.bin` lies `name.json`, or one `tokens.json` for the folder:

    {"dtype": "uint16", "vocab_size": 50257, "eos": 50256, "header_bytes": 0}

`eos` may stand before or after each document, or be null (one document a file). `dtype` defaults to uint16,
`header_bytes` to 0. `data.tokenizer` names the tokenizer.json that made the ids, for text and bits per byte; without
one the ids are bare.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paperlab.data.cache import cached
from paperlab.data.documents import held_out, path_hash, row_hashes
from paperlab.data.files import ROW_SUFFIXES, TEXT_SUFFIXES, find_files, suffix
from paperlab.data.stream import Concatenation, Stream
from paperlab.data.tokenizers import ByteTokenizer, IdTokenizer, Tokenizer, open_tokenizer
from paperlab.errors import ConfigError

CHUNK = 1 << 22
EXAMPLE = '{"dtype": "uint16", "vocab_size": 50257, "eos": 50256}'


class Sidecar(NamedTuple):
    dtype: np.dtype
    vocab_size: int
    eos: int | None
    header_bytes: int


class Index(NamedTuple):
    """The documents of some files: where they begin in the concatenation, how long they are, their hashes."""

    begins: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    digests: list[str]


def names_token_files(data: ConfigDict) -> bool:
    """Whether `data.path` names .bin files."""
    if not data.path:
        return False
    named = suffix(Path(data.path))
    if named in TEXT_SUFFIXES | ROW_SUFFIXES and not Path(data.path).is_dir():
        return False
    return named == ".bin" or suffix(find_files(data.path)[0][0]) == ".bin"


def open_token_files(data: ConfigDict, *, only_tokenizer: bool = False) -> tuple[Stream, Stream, Tokenizer, str]:
    """(train, validation, tokenizer, sha256) of the files that `data.path` and `data.validation_path` name.

    Args:
      data: the checked `data` section.
      only_tokenizer: leave the files unread; the streams are empty.

    Raises:
      ConfigError: no sidecar, a field of it that is wrong, a size or id that does not fit it, no tokens.
    """
    files, root = find_files(data.path)
    sidecar = read_sidecar(files[0])
    tokenizer = _tokenizer(data, sidecar)
    if only_tokenizer:
        return *_streams(Concatenation([]), _nothing(), np.zeros(0, bool), tokenizer), tokenizer, ""
    given: list[Path] = []
    if data.validation_path:
        given, _ = find_files(data.validation_path, "config.data.validation_path")
        if any(suffix(f) != ".bin" for f in given):
            raise ConfigError(
                f"config.data.validation_path: {data.validation_path} is not .bin like config.data.path: give token files"
            )
    arrays, index = _index([*files, *given], root, len(files) > 1, sidecar, data)
    if given:
        border = sum(len(a) for a in arrays[: len(files)])
        is_validation = index.begins >= border
    elif len(index.lengths) == 1 and data.validation_share:
        index, is_validation = _cut_one(index, data.validation_share)
    else:
        is_validation = held_out(index.hashes, data.validation_share)
    train, validation = _streams(
        Concatenation(arrays), _capped(index, data.max_bytes, sidecar), is_validation, tokenizer
    )
    if not train.documents:
        raise ConfigError(f"config.data.path: {data.path} holds no tokens for training")
    digest = hashlib.sha256(" ".join([*index.digests, str(sidecar)]).encode()).hexdigest()
    return train, validation, tokenizer, digest


def read_sidecar(file: Path) -> Sidecar:
    """The description of a .bin file, from `name.json` or `tokens.json` beside it."""
    places = [file.with_suffix(".json"), file.with_name("tokens.json")]
    place = next((p for p in places if p.is_file()), None)
    if place is None:
        raise ConfigError(f"{file} has no description: write {places[0]} or {places[1].name}, such as {EXAMPLE}")
    try:
        fields: dict[str, Any] = {"dtype": "uint16", "eos": None, "header_bytes": 0, **json.loads(place.read_text())}
        if fields["dtype"] not in ("uint16", "uint32"):
            raise ValueError(f"dtype={fields['dtype']!r} is neither uint16 nor uint32")
        size, eos, header = fields["vocab_size"], fields["eos"], fields["header_bytes"]
        if not all(type(n) is int for n in (size, header, 0 if eos is None else eos)):
            raise ValueError("vocab_size, eos and header_bytes must be whole numbers")
        if not 0 < size < 2**31 or header < 0 or not (eos is None or 0 <= eos < size):
            raise ValueError("vocab_size must be positive, 0 <= eos < vocab_size, header_bytes not negative")
    except KeyError as error:
        raise ConfigError(f"{place} lacks {error}: write such as {EXAMPLE}") from None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: {error}: write such as {EXAMPLE}") from None
    return Sidecar(np.dtype(fields["dtype"]).newbyteorder("<"), size, eos, header)


def _tokenizer(data: ConfigDict, sidecar: Sidecar) -> Tokenizer:
    if data.tokenizer != "bytes":
        tokenizer = open_tokenizer(data.tokenizer)
        if tokenizer.vocab_size < sidecar.vocab_size:
            raise ConfigError(
                f"config.data.tokenizer={data.tokenizer} has {tokenizer.vocab_size} ids, the token files {sidecar.vocab_size}"
            )
        return tokenizer
    if sidecar.vocab_size in (256, 257) and sidecar.eos in (None, 256):
        return ByteTokenizer()
    bos = sidecar.vocab_size if sidecar.eos is None else sidecar.eos
    return IdTokenizer(max(sidecar.vocab_size, bos + 1), bos)


def _index(
    files: list[Path], root: Path, several: bool, sidecar: Sidecar, data: ConfigDict
) -> tuple[list[np.ndarray], Index]:
    arrays, parts, offset = [], [], 0
    digests = []
    for file in files:
        if read_sidecar(file) != sidecar:
            raise ConfigError(f"{file} is described otherwise than {files[0]}: dtype, vocab_size and eos must agree")
        array = _map(file, sidecar)
        status = file.stat()
        key = f"index-1 {file.resolve()} {status.st_size} {status.st_mtime_ns} {sidecar}"
        scanned = cached(data.cache_dir, key, partial(_scan, array, file, sidecar))
        base = (
            path_hash(file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name) if several else 0
        )
        lengths = np.asarray(scanned["lengths"])
        parts.append((scanned["begins"] + offset, lengths, row_hashes(len(lengths), base)))
        digests.append(bytes(scanned["digest"]).hex())
        arrays.append(array)
        offset += len(array)
    begins, lengths, hashes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return arrays, Index(begins, lengths, hashes, digests)


def _map(file: Path, sidecar: Sidecar) -> np.ndarray:
    try:
        size = file.stat().st_size - sidecar.header_bytes
        if size <= 0 or size % sidecar.dtype.itemsize:
            raise ConfigError(
                f"{file}: {max(size, 0)} bytes are no {sidecar.dtype.name} tokens: check dtype and header_bytes"
            )
        return np.memmap(file, sidecar.dtype, "r", offset=sidecar.header_bytes)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from None


def _scan(array: np.ndarray, file: Path, sidecar: Sidecar) -> dict[str, np.ndarray]:
    """One pass over a file: the ends of its documents, its digest, and whether every id is in the vocabulary."""
    ends, digest = [np.array([-1])], hashlib.sha256()
    for start in range(0, len(array), CHUNK):
        chunk = np.ascontiguousarray(array[start : start + CHUNK])
        digest.update(chunk)
        if (largest := int(chunk.max())) >= sidecar.vocab_size:
            raise ConfigError(f"{file} holds the id {largest}, its description says vocab_size {sidecar.vocab_size}")
        if sidecar.eos is not None:
            ends.append(np.flatnonzero(chunk == sidecar.eos) + start)
    borders = np.concatenate([*ends, [len(array)]]).astype(np.int64)
    begins, lengths = borders[:-1] + 1, np.diff(borders) - 1
    kept = lengths > 0
    return {
        "begins": begins[kept],
        "lengths": lengths[kept],
        "digest": np.frombuffer(digest.digest(), np.uint8),
    }


def _cut_one(index: Index, share: float) -> tuple[Index, np.ndarray]:
    """One endless document: its end is held out."""
    begin, length = int(index.begins[0]), int(index.lengths[0])
    at = min(max(int(length * (1 - share)), 1), length)
    begins, lengths = np.array([begin, begin + at]), np.array([at, length - at])
    kept = lengths > 0
    cut = Index(begins[kept], lengths[kept], np.zeros(int(kept.sum()), np.uint64), index.digests)
    return cut, np.array([False, True])[kept]


def _capped(index: Index, max_bytes: int, sidecar: Sidecar) -> Index:
    """Shortens every document in the same proportion, to `max_bytes` of the files together."""
    size = int(index.lengths.sum()) * sidecar.dtype.itemsize
    if not max_bytes or size <= max_bytes:
        return index
    lengths = np.maximum(index.lengths * max_bytes // size, 1)
    return index._replace(lengths=lengths)


def _nothing() -> Index:
    return Index(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64), [])


def _streams(
    tokens: Concatenation, index: Index, is_validation: np.ndarray, tokenizer: Tokenizer
) -> tuple[Stream, Stream]:
    table = tokenizer.bytes_per_token()
    train, validation = (
        Stream(tokens, index.begins[rows], index.lengths[rows], tokenizer.bos, table)
        for rows in (~is_validation, is_validation)
    )
    return train, validation

"""Documents, and which of them are held out.

    hash(document) in [0, 2^64);   validation = {d : hash(d) < validation_share 2^64}

The hash also orders the documents, so neighbours are unrelated. It is sha256 of the relative path (text files: one
document each) or a mix of the index (rows of .jsonl, .parquet, datasets and token files), so a document's split depends
neither on the machine nor on the other documents. If no hash falls below the share, the lowest one goes to validation;
a single text is cut at a line near its end.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
    name: str
    content: bytes
    hash: int  # 64 bits


def split(documents: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """(train, validation) by hash, each ordered by hash."""
    if share == 0:
        return sorted(documents, key=_by_hash), []
    if len(documents) == 1:
        return _cut_one(documents[0], share)
    documents = sorted(documents, key=_by_hash)
    count = int(held_out(np.array([d.hash for d in documents], np.uint64), share).sum())
    return documents[count:], documents[:count]


def held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Which documents are validation: bool [N], at least one and never all where `share` > 0 and N > 1."""
    if share == 0 or len(hashes) < 2:
        return np.zeros(len(hashes), bool)
    order = np.argsort(hashes, kind="stable")
    count = int((hashes < np.uint64(share * 2**64)).sum())
    mask = np.zeros(len(hashes), bool)
    mask[order[: min(max(count, 1), len(order) - 1)]] = True
    return mask


def path_hash(name: str) -> int:
    """64 bits of sha256 of a name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def row_hashes(count: int, base: int = 0) -> np.ndarray:
    """splitmix64 of base + 1, base + 2, ...: uint64 [count]."""
    x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(base)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def capped(documents: list[Document], limit: int) -> list[Document]:
    kept, size = [], 0
    for d in documents:
        if size >= limit:
            break
        content = d.content[: whole_characters(d.content, limit - size)] if len(d.content) > limit - size else d.content
        kept.append(d._replace(content=content))
        size += len(d.content)
    return filled(kept) or documents[:1]


def filled(documents: Iterable[Document]) -> list[Document]:
    return [d for d in documents if d.content]


def whole_characters(content: bytes, size: int) -> int:
    """The largest cut <= size that does not split a UTF-8 character."""
    size = min(size, len(content))
    for back in range(min(4, size + 1)):
        if size - back == len(content) or content[size - back] & 0xC0 != 0x80:
            return size - back
    return size


def _cut_one(document: Document, share: float) -> tuple[list[Document], list[Document]]:
    content = document.content
    target = int(len(content) * (1 - share))
    at = content.rfind(b"\n", 0, target) + 1
    if not at or len(content) - at > 2 * (len(content) - target):  # no line ends near there
        at = whole_characters(content, target) or len(content)
    train, held_out = document._replace(content=content[:at]), document._replace(content=content[at:])
    return [train], [held_out] if held_out.content else []


def _by_hash(document: Document) -> tuple[int, str]:
    return document.hash, document.name

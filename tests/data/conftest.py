"""Small corpora: streams built from lists, documents written in every format."""

import json
from pathlib import Path

import numpy as np
import pytest

from paperlab.data.stream import Stream
from paperlab.data.text import Corpus
from paperlab.data.tokenizers import ByteTokenizer


def stream_of(documents: list[bytes]) -> Stream:
    sizes = np.array([len(d) for d in documents], np.int64)
    text = np.frombuffer(b"".join(documents), np.uint8)
    tokenizer = ByteTokenizer()
    begins = np.cumsum(sizes) - sizes
    return Stream(text, begins, sizes, tokenizer.bos, tokenizer.bytes_per_token(), None, text, sizes)


def corpus_of(train: list[bytes], validation: list[bytes] | None = None) -> Corpus:
    return Corpus(stream_of(train), stream_of(validation or train), ByteTokenizer(), 257, "", "a test")


def documents_of(stream: Stream) -> list[bytes]:
    return sorted(bytes(stream.document(n).tolist()) for n in range(stream.documents))


@pytest.fixture
def texts() -> list[str]:
    return [f"Document {i}: " + "naïve Ω text, 日本\n" * (i % 5 + 1) for i in range(12)]


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def write(kind: str, folder: Path, texts: list[str]) -> str:
    """The same documents as .jsonl, .jsonl.gz, .parquet, .bin or a folder of .txt; returns the path to give."""
    import gzip

    folder.mkdir(parents=True, exist_ok=True)
    if kind in ("jsonl", "jsonl.gz"):
        lines = "\n".join(
            json.dumps({"text": t, "n": 1}, ensure_ascii=i % 2 == 0) for i, t in enumerate(texts)
        ).encode()
        (folder / f"d.{kind}").write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines + b"\n\n")
        return str(folder / f"d.{kind}")
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), folder / "d.parquet")
        return str(folder / "d.parquet")
    if kind == "bin":
        ids = np.concatenate([[*t.encode(), 256] for t in texts]).astype("<u2")
        (folder / "d.bin").write_bytes(ids.tobytes())
        (folder / "d.json").write_text('{"dtype": "uint16", "vocab_size": 257, "eos": 256}')
        return str(folder / "d.bin")
    for i, t in enumerate(texts):
        place = folder / f"part{i % 3}" / f"{i}.txt"
        place.parent.mkdir(exist_ok=True)
        place.write_text(t, encoding="utf-8", newline="")
    return str(folder / "part*" / "*.txt") if kind == "glob" else str(folder)

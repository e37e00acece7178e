"""Bad input: one clear line that names the file or field and says how to mend it."""

import json
import sys
from pathlib import Path

import pytest

from paperlab.data.packing import batches
from paperlab.data.text import open_corpus
from paperlab.errors import ConfigError


def text(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


CASES = {
    "missing": (lambda d: {"path": f"{d}/none.txt"}, "data.path: .*none.txt does not exist"),
    "missing glob": (lambda d: {"path": f"{d}/*.txt"}, "does not exist: give a file, a folder or a glob"),
    "empty folder": (lambda d: {"path": str(d)}, "data.path: no text in .*: a folder is searched for .txt"),
    "empty file": (lambda d: {"path": text(d, "a.txt", b"")}, "data.path=.*a.txt holds no text for training"),
    "binary": (lambda d: {"path": text(d, "a.txt", b"ab\0c")}, "a.txt is binary .a zero byte at offset 2."),
    "bad gzip": (lambda d: {"path": text(d, "a.txt.gz", b"plain")}, "cannot read .*a.txt.gz: Not a gzipped file"),
    "bad json": (lambda d: {"path": text(d, "a.jsonl", b'{"text": "a"}\n{"text"')}, "a.jsonl: line 2 is not JSON"),
    "deep json": (lambda d: {"path": text(d, "a.jsonl", b"[" * 100_000)}, "a.jsonl: line 1 is not JSON"),
    "not utf8 json": (lambda d: {"path": text(d, "a.jsonl", b'{"text": "\xff"}')}, "a.jsonl: line 1 is not JSON"),
    "not an object": (lambda d: {"path": text(d, "a.jsonl", b'"text"')}, "a.jsonl: line 1 is not an object"),
    "wrong field": (
        lambda d: {"path": text(d, "a.jsonl", b'{"body": "a", "id": 1}')},
        "line 1 has no field 'text': set config.data.text_field to one of body, id",
    ),
    "not a text": (
        lambda d: {"path": text(d, "a.jsonl", b'{"text": 3}')},
        "data.text_field='text' holds the type int, not text",
    ),
    "empty rows": (lambda d: {"path": text(d, "a.jsonl", b'{"text": ""}\n{"text": null}\n')}, "holds no text"),
    "bad parquet": (lambda d: {"path": text(d, "a.parquet", b"PAR1")}, "cannot read .*a.parquet: "),
    "mixed": (
        lambda d: [text(d, "a.bin", b"ab"), {"path": str(Path(text(d, "b.txt", b"ab")).parent)}][1],
        "mixes .bin token files with text",
    ),
    "mixed validation": (
        lambda d: {
            "path": text(d, "a.bin", b"ab"),
            "validation_path": text(d, "b.txt", text(d, "a.json", b'{"vocab_size": 65536}').encode()),
        },
        "data.validation_path: .*b.txt is not .bin like config.data.path",
    ),
    "missing validation": (
        lambda d: {"path": text(d, "a.txt", b"ab"), "validation_path": f"{d}/none"},
        "data.validation_path: .*none does not exist",
    ),
    "not utf8": (
        lambda d: {"path": text(d, "a.txt", b"caf\xe9 " * 9), "tokenizer": words(d), "cache_dir": str(d)},
        "a.txt is not UTF-8 .byte 3.: convert it, or use config.data.tokenizer=bytes",
    ),
    "no tokens": (
        lambda d: {"path": text(d, "a.txt", b" \n" * 9), "tokenizer": words(d), "cache_dir": str(d)},
        "data.tokenizer=.* makes no token of the text of .*a.txt",
    ),
    "no such tokenizer": (lambda d: {"tokenizer": f"{d}/t.json"}, "data.tokenizer: .*t.json does not exist"),
    "source": (lambda d: {"source": "web"}, "data.source='web': choose one of stdlib, files, hf"),
    "no path": (lambda d: {"source": "files"}, "data.path is empty: give a file, a folder or a glob"),
    "no dataset": (lambda d: {"source": "hf"}, "data.hf_name is empty"),
    "share": (lambda d: {"validation_share": 1.0}, "data.validation_share=1.0: must be from 0 to below 1"),
    "negative": (lambda d: {"max_bytes": -1}, "data.max_bytes=-1: must be from 0 to"),
    "vocabulary": (lambda d: {"vocab_size": 100}, "data.vocab_size=100 is smaller than the tokenizer's 257"),
}


def words(folder: Path) -> str:
    from tests.data.test_tokenizers import lower_words

    return text(folder, "words.json", lower_words().encode())


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(case, tmp_path):
    make, message = CASES[case]
    with pytest.raises(ConfigError, match=message) as caught:
        open_corpus(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_wrong_parquet_column_is_named(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(
        ConfigError, match=r"a\.parquet has no column 'text': set config\.data\.text_field to one of body"
    ):
        open_corpus({"path": str(tmp_path)})


@pytest.mark.parametrize(
    ("package", "data", "message"),
    [
        ("datasets", {"source": "hf", "hf_name": "a"}, r"data\.source=hf needs the package datasets: pip install"),
        ("tokenizers", {"tokenizer": "words.json"}, r"words\.json needs the package tokenizers: pip install"),
        ("pyarrow", {"path": "a.parquet"}, r"a\.parquet: \.parquet needs the package pyarrow: pip install"),
    ],
)
def test_missing_packages_are_named(package, data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words(tmp_path)
    text(tmp_path, "a.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=message):
        open_corpus(data)


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    path = text(tmp_path, "a.txt", b"ab")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"cannot read .*a\.txt: Permission denied"):
        open_corpus({"path": path})


def test_empty_validation_says_how_to_mend_it(tmp_path):
    corpus = open_corpus({"path": text(tmp_path, "a.txt", b"abc"), "validation_share": 0})
    with pytest.raises(
        ConfigError, match=r"the validation split of .*a\.txt is empty: give config\.data\.validation_path or"
    ):
        batches(corpus, "validation", sequence_length=2, batch_size=1)


def test_huge_lines_and_tiny_texts_are_fine(tmp_path):
    line = json.dumps({"text": "x" * 5_000_000})
    corpus = open_corpus({"path": text(tmp_path, "a.jsonl", f"{line}\n{line}".encode())})
    assert corpus.train.text_bytes == corpus.validation.text_bytes == 5_000_000
    for content in ("a", "é", "ab", "日本", "\n", "\n\n"):
        corpus = open_corpus({"path": text(tmp_path, "b.txt", content.encode())})
        assert corpus.train.text_bytes + corpus.validation.text_bytes == len(content.encode())
        assert batches(corpus, "train", sequence_length=4, batch_size=2)[0]["weights"].sum() > 0

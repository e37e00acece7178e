"""The same documents in every format are the same tokens, and the split of a document never moves."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperlab.data.documents import Document, held_out, path_hash, row_hashes, split, whole_characters
from paperlab.data.sources import from_stdlib
from paperlab.data.text import open_corpus, vocab_size
from paperlab.errors import ConfigError
from tests.data.conftest import documents_of, write

FORMATS = ["jsonl", "jsonl.gz", "parquet", "bin", "folder", "glob"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_tokens(kind, tmp_path, texts, cache):
    path = write(kind, tmp_path / "all", texts)
    corpus = open_corpus({"path": path, "validation_share": 0.3, "cache_dir": cache})
    got = sorted(documents_of(corpus.train) + documents_of(corpus.validation))
    assert got == sorted(t.encode() for t in texts)
    assert corpus.validation.documents > 0
    assert corpus.vocab_size == vocab_size({"path": path}) == 257


@pytest.mark.parametrize("kind", FORMATS)
def test_validation_path_keeps_the_splits_as_given(kind, tmp_path, texts, cache):
    data = {"path": write(kind, tmp_path / "a", texts[:8]), "validation_path": write(kind, tmp_path / "b", texts[8:])}
    corpus = open_corpus({**data, "cache_dir": cache})
    assert documents_of(corpus.train) == sorted(t.encode() for t in texts[:8])
    assert documents_of(corpus.validation) == sorted(t.encode() for t in texts[8:])


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "bin"])
def test_rows_of_one_file_are_split_alike_in_every_format(kind, tmp_path, texts, cache):
    corpus = open_corpus({"path": write(kind, tmp_path, texts), "validation_share": 0.3, "cache_dir": cache})
    expected = sorted(t.encode() for t, held in zip(texts, held_out(row_hashes(len(texts)), 0.3), strict=True) if held)
    assert documents_of(corpus.validation) == expected


def test_standard_library_is_what_people_wrote():
    documents = {d.name: d.content for d in from_stdlib()}
    assert {"os.py", "json/decoder.py", "asyncio/events.py"} < documents.keys()
    skipped = {"test", "tests", "site-packages", "dist-packages", "idlelib", "pydoc_data"}
    assert all(skipped.isdisjoint(name.split("/")[:-1]) for name in documents)
    assert not any(name.startswith(("_sysconfigdata", "config-")) for name in documents)
    assert documents["os.py"] == Path(__import__("os").__file__).read_bytes()


def test_standard_library_split_is_golden():
    """sha256 of the path, on every machine; a change here moves every published number."""
    names = ["os.py", "zipfile/__init__.py", "traceback.py", "json/decoder.py", "secrets.py", "typing.py"]
    assert [path_hash(n) < 0.05 * 2**64 for n in names] == [False, True, True, False, True, False]
    assert path_hash("os.py") == 0xD9D7C69C64B6688C
    assert row_hashes(3).tolist() == [16294208416658607535, 7960286522194355700, 487617019471545679]
    train, validation = split(list(from_stdlib()), 0.05)
    held = {d.name for d in validation}
    assert {"zipfile/__init__.py", "traceback.py", "secrets.py"} <= held
    assert held.isdisjoint(d.name for d in train)
    assert [d.hash for d in train] == sorted(d.hash for d in train)


def test_default_corpus_is_deterministic_and_described():
    first, second = open_corpus({}), open_corpus({})
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
    summary = first.summary()
    assert summary["bytes"] == summary["train"]["bytes"] + summary["validation"]["bytes"] > 5_000_000
    assert summary["train"]["tokens"] == summary["train"]["bytes"]
    json.dumps(summary)


def test_digest_tells_contents_names_and_splits_apart(tmp_path, texts):
    def digest(folder, texts, **change):
        return open_corpus({"path": write("folder", tmp_path / folder, texts), **change}).digest

    assert digest("a", texts) == digest("b", texts)
    assert digest("a", texts) != digest("c", [*texts[:-1], texts[-1].replace("D", "d")])
    assert digest("a", texts) != digest("d", [texts[-1], *texts[1:-1], texts[0]])
    assert digest("a", texts) != digest("a", texts, validation_share=0.5)


def test_a_path_means_files_whatever_the_source(tmp_path, texts):
    corpus = open_corpus({"source": "stdlib", "path": write("folder", tmp_path, texts)})
    assert corpus.train.documents + corpus.validation.documents == len(texts)


def test_one_text_is_cut_at_a_line_near_its_end(tmp_path):
    lines = [f"line {i} Ω\n" for i in range(1000)]
    (tmp_path / "one.txt").write_text("".join(lines), encoding="utf-8")
    corpus = open_corpus({"path": str(tmp_path / "one.txt"), "validation_share": 0.1})
    (head,), (tail,) = documents_of(corpus.train), documents_of(corpus.validation)
    assert (head + tail).decode() == "".join(lines)
    assert head.endswith(b"\n")
    assert 0.1 <= len(tail) / len(head + tail) < 0.102


def test_one_huge_line_is_cut_between_characters(tmp_path):
    (tmp_path / "one.txt").write_text("a\n" + "日本" * 50_000, encoding="utf-8")
    corpus = open_corpus({"path": str(tmp_path / "one.txt"), "validation_share": 0.1})
    (tail,) = documents_of(corpus.validation)
    assert set(tail.decode()) == {"日", "本"}
    assert len(tail) < 0.11 * 300_000


def test_at_least_one_document_is_held_out_and_one_is_not():
    documents = [Document(str(i), b"x", int(h)) for i, h in enumerate(row_hashes(5))]
    for share in (1e-9, 0.999999):
        train, validation = split(documents, share)
        assert {len(train), len(validation)} == {1, 4}
    assert split(documents, 0)[1] == []


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=30, unique=True), st.floats(0.01, 0.99))
def test_a_document_stays_in_its_split_when_others_come(hashes, share):
    hashes = np.array(hashes, np.uint64)
    below = (hashes < np.uint64(share * 2**64)).sum()
    if 0 < below < len(hashes):
        np.testing.assert_array_equal(held_out(hashes, share), hashes < np.uint64(share * 2**64))


@given(st.text(max_size=20), st.integers(0, 90))
def test_whole_characters_never_splits_one(text, size):
    content = text.encode("utf-8", "ignore")
    cut = whole_characters(content, size)
    assert cut <= min(size, len(content))
    assert min(size, len(content)) - cut <= 3
    content[:cut].decode()


def test_max_bytes_keeps_both_splits(tmp_path, texts):
    path = write("folder", tmp_path, texts)
    corpus = open_corpus({"path": path, "max_bytes": 300, "validation_share": 0.3})
    assert 200 <= corpus.train.text_bytes <= 210
    assert 85 <= corpus.validation.text_bytes <= 90
    for document in documents_of(corpus.train) + documents_of(corpus.validation):
        document.decode()


def test_hidden_files_and_other_kinds_are_left_out(tmp_path):
    for name in ("a.txt", "b.md", ".hidden/c.txt", "d.png", "e.TXT"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    corpus = open_corpus({"path": str(tmp_path), "validation_share": 0})
    assert documents_of(corpus.train) == [b"a.txt", b"b.md", b"e.TXT"]


def test_hugging_face_rows(monkeypatch, texts):
    calls = []

    def load_dataset(name, config, *, split, streaming):
        calls.append((name, config, split, streaming))
        return [{"body": f"{split} {t}"} for t in texts]

    stand_in = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    data = {"source": "hf", "hf_name": "some/set", "text_field": "body", "hf_validation_split": "test"}
    corpus = open_corpus(data)
    assert calls == [("some/set", None, "train", False), ("some/set", None, "test", False)]
    assert documents_of(corpus.train) == sorted(f"train {t}".encode() for t in texts)
    assert documents_of(corpus.validation) == sorted(f"test {t}".encode() for t in texts)
    assert corpus.source == "hf:some/set"
    with pytest.raises(ConfigError, match="row 1 has no field 'text'"):
        open_corpus({**data, "text_field": "text"})


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"train": [], "test": []}, "split 'dev': there are only train, test"),
        ([], "leave config.data.hf_validation_split empty"),
    ],
)
def test_a_missing_split_of_a_saved_dataset_is_named(monkeypatch, tmp_path, stored, message):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_from_disk=lambda path: stored))
    with pytest.raises(ConfigError, match=message):
        open_corpus({"source": "hf", "hf_name": str(tmp_path), "hf_validation_split": "dev"})


def test_vocab_size_is_known_without_the_data():
    assert vocab_size({"path": "nowhere/*.bin", "vocab_size": 32000}) == 32000
    assert vocab_size({}) == 257
    assert open_corpus({"vocab_size": 320}).vocab_size == 320

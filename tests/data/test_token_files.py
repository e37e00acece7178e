"""Token files: memory-mapped, cut at the eos id, split by document, indexed once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from paperlab.data.packing import batches
from paperlab.data.text import open_corpus, vocab_size
from paperlab.data.tokenizers import IdTokenizer
from paperlab.errors import ConfigError
from tests.data.conftest import documents_of

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 1], [2, 2, 2]]
GPT2 = {"dtype": "uint16", "vocab_size": 11, "eos": 10}


def write_tokens(file: Path, tokens: list[int], header: bytes = b"", **fields) -> str:
    description = {**GPT2, **fields}
    file.parent.mkdir(exist_ok=True)
    ids = np.array(tokens, np.dtype(description["dtype"]).newbyteorder("<"))
    file.write_bytes(header + ids.tobytes())
    file.with_suffix(".json").write_text(json.dumps(description))
    return str(file)


def flat(documents, eos=10, before=False):
    return [i for d in documents for i in ([eos, *d] if before else [*d, eos])]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("before", [False, True])
def test_documents_are_cut_at_the_end_id(tmp_path, cache, dtype, before):
    path = write_tokens(tmp_path / "a.bin", flat(DOCUMENTS, before=before), b"head", dtype=dtype, header_bytes=4)
    corpus = open_corpus({"path": path, "validation_share": 0, "cache_dir": cache})
    assert [corpus.train.document(n).tolist() for n in range(5)] == DOCUMENTS
    batch = batches(corpus, "train", sequence_length=5, batch_size=1, order="contiguous")[0]
    assert batch["tokens"].tolist() == [[10, 1, 2, 3, 10]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0, 1]]
    assert (corpus.vocab_size, vocab_size({"path": path})) == (11, 11)


def test_several_files_are_one_stream(tmp_path, cache):
    for i, part in enumerate((DOCUMENTS[:2], DOCUMENTS[2:])):
        write_tokens(tmp_path / f"{i}.bin", flat(part))
    for path in (tmp_path, tmp_path / "*.bin"):
        corpus = open_corpus({"path": str(path), "validation_share": 0.3, "cache_dir": cache})
        assert documents_of(corpus.train) != documents_of(corpus.validation) != []
        got = documents_of(corpus.train) + documents_of(corpus.validation)
        assert sorted(got) == sorted(map(bytes, DOCUMENTS))
        assert len(list(batches(corpus, "validation", sequence_length=2, batch_size=1))) > 0


def test_one_description_for_a_folder(tmp_path, cache):
    write_tokens(tmp_path / "a.bin", flat(DOCUMENTS))
    (tmp_path / "a.json").rename(tmp_path / "tokens.json")
    assert open_corpus({"path": str(tmp_path), "cache_dir": cache}).vocab_size == 11


def test_an_endless_document_is_cut_near_its_end(tmp_path, cache):
    path = write_tokens(tmp_path / "a.bin", list(range(10)) * 10, eos=None)
    corpus = open_corpus({"path": path, "validation_share": 0.1, "cache_dir": cache})
    assert (corpus.train.documents, corpus.validation.documents) == (1, 1)
    assert corpus.validation.document(0).tolist() == list(range(10))
    assert (corpus.tokenizer.bos, corpus.vocab_size) == (11, 12)


def test_bare_ids_have_no_text(tmp_path, cache):
    corpus = open_corpus({"path": write_tokens(tmp_path / "a.bin", flat(DOCUMENTS)), "cache_dir": cache})
    assert isinstance(corpus.tokenizer, IdTokenizer)
    assert corpus.tokenizer.decode([1, 2]) == "1 2"
    with pytest.raises(ConfigError, match=r"give their tokenizer\.json"):
        corpus.tokenizer.encode("a")
    batch = batches(corpus, "train", sequence_length=4, batch_size=1)[0]
    assert batch["bytes"].sum() == 0


def test_index_is_kept_until_the_file_changes(tmp_path, cache):
    path = write_tokens(tmp_path / "a.bin", flat(DOCUMENTS))
    first = open_corpus({"path": path, "cache_dir": cache})
    kept = {f: f.stat().st_mtime_ns for f in Path(cache).rglob("*.npy")}
    assert kept
    assert open_corpus({"path": path, "cache_dir": cache}).digest == first.digest
    assert {f: f.stat().st_mtime_ns for f in Path(cache).rglob("*.npy")} == kept
    write_tokens(tmp_path / "a.bin", flat(reversed(DOCUMENTS)))
    os.utime(path, ns=(1, 1))
    assert open_corpus({"path": path, "cache_dir": cache}).digest != first.digest


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(f.read_bytes()[:-8]), Path.unlink])
def test_a_damaged_cache_is_made_anew(tmp_path, cache, damage):
    path = write_tokens(tmp_path / "a.bin", flat(DOCUMENTS))
    digest = open_corpus({"path": path, "cache_dir": cache}).digest
    for file in list(Path(cache).rglob("*.npy")):
        damage(file)
    assert open_corpus({"path": path, "cache_dir": cache}).digest == digest
    assert not list(Path(cache).glob("making-*"))
    assert len(list(Path(cache).rglob("*.npy"))) == 3


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    path = write_tokens(tmp_path / "a.bin", flat(DOCUMENTS))
    (tmp_path / "file").write_text("")
    assert open_corpus({"path": path, "cache_dir": str(tmp_path / "file")}).train.documents == 4


def test_max_bytes_shortens_every_document(tmp_path, cache):
    path = write_tokens(tmp_path / "a.bin", flat([[1] * 100, [2] * 300]))
    corpus = open_corpus({"path": path, "max_bytes": 80, "cache_dir": cache})
    assert sorted(len(d) for d in documents_of(corpus.train) + documents_of(corpus.validation)) == [10, 30]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, r"a\.json: dtype='int8' is neither uint16 nor uint32"),
        ({"vocab_size": 5}, r"vocab_size must be positive, 0 <= eos < vocab_size"),
        ({"vocab_size": "many"}, r"a\.json: .* must be whole numbers"),
        ({"eos": None, "vocab_size": 4}, r"a\.bin holds the id 10, its description says vocab_size 4"),
        ({"header_bytes": 3}, r"a\.bin: .* bytes are no uint16 tokens: check dtype and header_bytes"),
        ({"header_bytes": 3000}, r"a\.bin: 0 bytes are no uint16 tokens"),
    ],
)
def test_wrong_descriptions_are_named(tmp_path, cache, fields, message):
    path = write_tokens(tmp_path / "a.bin", flat(DOCUMENTS))
    Path(path).with_suffix(".json").write_text(json.dumps({**GPT2, **fields}))
    with pytest.raises(ConfigError, match=message):
        open_corpus({"path": path, "cache_dir": cache})


def test_missing_descriptions_and_fields_are_named(tmp_path, cache):
    path = Path(write_tokens(tmp_path / "a.bin", flat(DOCUMENTS)))
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(ConfigError, match=r"a\.json lacks 'vocab_size': write such as"):
        open_corpus({"path": str(path), "cache_dir": cache})
    path.with_suffix(".json").unlink()
    with pytest.raises(ConfigError, match=r"a\.bin has no description: write .*a\.json or tokens\.json"):
        open_corpus({"path": str(path), "cache_dir": cache})

"""Round trips, and bytes that add up exactly, for bytes and for three kinds of tokenizer.json made here."""

import json

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from paperlab.data.packing import batches
from paperlab.data.text import open_corpus
from paperlab.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, IdTokenizer, load, open_tokenizer
from paperlab.errors import ConfigError
from tests.data.conftest import write

SAMPLE = ["the cat sat on the mat", "naïve café, 日本 and Ω", "def f(x):\n    return x  # done\n"] * 3


def byte_level() -> str:
    tokenizer = hf.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    return tokenizer.to_str()


def byte_fallback() -> str:
    """As Llama: ▁ for spaces, one before the text, bytes for what is unknown."""
    pieces = ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdefgh", "ab", "▁ab", "▁c"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [("a", "b"), ("▁", "ab"), ("▁", "c")], unk_token="<unk>", byte_fallback=True)
    tokenizer = hf.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer.to_str()


def lower_words() -> str:
    """As BERT: normalises and drops spaces, so ids have no fixed length at all."""
    tokenizer = hf.Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, "naive": 3}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer.to_str()


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "lower_words": lower_words}
MADE = {kind: HuggingFaceTokenizer(make()) for kind, make in KINDS.items()}


@given(st.text(max_size=40))
def test_bytes_round_trip(text):
    content = text.encode("utf-8", "replace")
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(content.decode()) == tokenizer.encode_bytes(content).tolist() == list(content)
    assert tokenizer.decode([256, *content, 256, 300]) == content.decode()


def test_bytes_decode_half_a_character():
    assert ByteTokenizer().decode("Ω".encode()[:1]) == "\ufffd"
    assert ByteTokenizer().encode("a\udcff") == [97, 255]  # a prompt with odd bytes, as the shell hands it over


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.sampled_from("abcdefgh the naïve Ω日\n😀"), min_size=1, max_size=40))
def test_bytes_of_a_document_add_up(kind, text):
    content = text.encode()
    ids, sizes = MADE[kind].encode_document(content)
    assert len(ids) == len(sizes)
    assert sizes.sum() == (len(content) if len(ids) else 0)
    assert len(ids) == 0 or ids.max() < MADE[kind].vocab_size


@given(st.text(max_size=40))
def test_byte_level_ids_have_fixed_lengths(text):
    content = text.encode("utf-8", "replace")
    tokenizer = MADE["byte_level"]
    ids, _ = tokenizer.encode_document(content)
    assert tokenizer.bytes_per_token()[ids].sum() == len(content)
    assert tokenizer.decode(ids) == content.decode()


def test_a_token_stands_for_the_bytes_up_to_its_end():
    ids, sizes = MADE["lower_words"].encode_document("Naïve  CAT the\n".encode())
    assert ids.tolist() == [3, 2, 1]
    assert sizes.tolist() == [6, 5, 5]


def test_byte_fallback_table_is_one_a_byte():
    tokenizer = MADE["byte_fallback"]
    ids, sizes = tokenizer.encode_document("ab Ω c".encode())
    assert sizes.sum() == 7
    assert tokenizer.bytes_per_token()[ids].sum() == 8  # the space put before the text is the vocabulary's, not ours
    assert tokenizer.decode(ids) == "ab Ω c"


def test_truncation_and_padding_of_the_file_are_ignored():
    assert len(MADE["byte_level"].encode("x y z " * 30)) > 64
    assert len(MADE["byte_level"].encode("x")) == 1


def test_begin_of_document_is_found_or_made(tmp_path):
    assert MADE["byte_level"].bos_token == "<|endoftext|>"
    assert MADE["byte_fallback"].bos_token == "<s>"
    words = MADE["lower_words"]
    assert (words.bos_token, words.bos, words.vocab_size) == (None, 4, 5)
    (tmp_path / "tokenizer.json").write_text(lower_words())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "the"}}')
    assert open_tokenizer(str(tmp_path)).bos == 1


@pytest.mark.parametrize("kind", ["bytes", "ids", *KINDS])
def test_saved_and_loaded_is_the_same(kind, tmp_path):
    tokenizer = {"bytes": ByteTokenizer(), "ids": IdTokenizer(9, 8), **MADE}[kind]
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load(tmp_path / "tokenizer.json")
    assert (again.vocab_size, again.bos, type(again)) == (tokenizer.vocab_size, tokenizer.bos, type(tokenizer))
    assert again.state() == tokenizer.state()
    assert again.decode([1, 3, 2]) == tokenizer.decode([1, 3, 2])
    assert open_tokenizer(str(tmp_path)).bos == tokenizer.bos


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_byte_count_every_byte_of_the_corpus(kind, tmp_path, texts, cache):
    (tmp_path / "tokenizer.json").write_text(KINDS[kind]())
    path = write("jsonl", tmp_path / "data", texts)
    data = {"path": path, "tokenizer": str(tmp_path), "validation_share": 0.3, "cache_dir": cache}
    for attempt in range(2):  # the second reads the cache
        corpus = open_corpus(data)
        got = list(batches(corpus, "validation", sequence_length=7, batch_size=3))
        assert sum(b["bytes"].sum() for b in got) == corpus.validation.text_bytes > 0, attempt
        assert sum(b["weights"].sum() for b in got) == corpus.summary()["validation"]["tokens"]
    assert all(b["tokens"].max() < corpus.vocab_size for b in got)
    whole = corpus.tokenizer.decode(corpus.validation.document(0))
    if kind != "lower_words":
        assert whole in texts


def test_bad_definitions_are_named(tmp_path):
    (tmp_path / "t.json").write_text('{"version": "1.0"}')
    with pytest.raises(ConfigError, match=r"data\.tokenizer: .*t\.json is not a Hugging Face tokenizer"):
        open_tokenizer(str(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ConfigError, match=r"data\.tokenizer: cannot read .*t\.json"):
        open_tokenizer(str(tmp_path / "t.json"))
    with pytest.raises(ConfigError, match=r"data\.tokenizer: .* give 'bytes' or the path of a tokenizer\.json"):
        open_tokenizer("byte")


def test_states_are_json():
    for tokenizer in (ByteTokenizer(), IdTokenizer(3, 2), *MADE.values()):
        json.dumps(tokenizer.state())
        assert np.isfinite(tokenizer.bytes_per_token()).all()
        assert tokenizer.bytes_per_token().shape == (tokenizer.vocab_size,)

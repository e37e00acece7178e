"""Files of text, tokens and tokenizers that cannot be read, or not as what they are said to be."""

from pathlib import Path

from tests.bad_input.cases import (
    Case,
    dangling,
    fifo,
    made,
    parquet,
    text_folder,
    tiny,
    tokens,
    unix_socket,
    words_tokenizer,
    write,
)

PATH = "--config.data.path={}"
TOKENIZER = "--config.data.tokenizer={}"


def file(name: str, content: bytes | str, *told: str) -> Case:
    """`config.data.path` names a file with this content."""
    return made(lambda d: write(d, name, content), PATH, told=told)


def described(sidecar: object, *told: str, content: bytes = b"\1\0" * 64) -> Case:
    """`config.data.path` names a token file with this description."""
    return made(lambda d: tokens(d, sidecar, content), PATH, told=told)


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


CASES: dict[str, Case] = {
    "missing": tiny(
        "--config.data.path=/nowhere/a.txt", told=("config.data.path: /nowhere/a.txt does not exist", "a glob")
    ),
    "missing glob": tiny("--config.data.path=/nowhere/*.txt", told=("config.data.path", "does not exist")),
    "below a file": made(lambda d: write(d, "a.txt", "a") / "b.txt", PATH, told=("config.data.path", "does not exist")),
    "nobody's home": tiny(
        "--config.data.path=~nobody_here/a.txt", told=("config.data.path=~nobody_here/a.txt", "home")
    ),
    "too long": tiny(f"--config.data.path=/tmp/{'x' * 300}", told=("config.data.path: cannot read", "name too long")),
    "empty folder": made(_empty, PATH, told=("config.data.path: no text in", "a folder is searched for .txt")),
    "folder of pictures": made(
        lambda d: write(d, "p/a.png", b"\x89PNG").parent, PATH, told=("config.data.path: no text in", ".jsonl .parquet")
    ),
    "folder called like a file": made(
        lambda d: write(d, "a.jsonl/b.png", "").parent, PATH, told="config.data.path: no text in"
    ),
    "named pipe": made(fifo, PATH, told=("config.data.path", "is a named pipe", "give a file")),
    "socket": made(unix_socket, PATH, told=("config.data.path", "is a socket", "give a file")),
    "device": tiny("--config.data.path=/dev/zero", told="config.data.path: /dev/zero is a device: give a file"),
    "dangling link": made(dangling, PATH, told=("is a link to", "gone.txt, which does not exist")),
    "mixed": made(
        lambda d: [tokens(d, None), write(d, "b.txt", "b")][1].parent,
        PATH,
        told=("mixes .bin token files with text", "glob"),
    ),
    "no path": tiny("--config.data.path=", "--config.data.source=files", told="config.data.path is empty: give a file"),
    "no data set": tiny("--config.data.path=", "--config.data.source=hf", told="config.data.hf_name is empty"),
    "missing validation": tiny(
        "--config.data.validation_path=/nowhere", told="config.data.validation_path: /nowhere does not exist"
    ),
    "no validation": tiny(
        "--config.data.validation_share=0", told=("the validation split", "config.data.validation_path")
    ),
    # text
    "empty": file("a.txt", "", "a.txt holds no text for training", "config.data.path"),
    "zero bytes": file("a.txt", b"ab\0c", "a.txt is binary (a zero byte at offset 2)", "config.data.path takes"),
    "UTF-16": file("a.txt", "text".encode("utf-16"), "a.txt is UTF-16", "iconv"),
    "not gzipped": file("a.txt.gz", b"plain", "cannot read", "a.txt.gz", "Not a gzipped file"),
    "half gzipped": file("a.txt.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\3", "cannot read", "a.txt.gz"),
    # rows
    "broken JSON": file("a.jsonl", '{"text": "a"}\n{"text"', "a.jsonl: line 2 is not JSON"),
    "deep JSON": file("a.jsonl", "[" * 100_000, "a.jsonl: line 1 is not JSON"),
    "JSON that is no text": file("a.jsonl", b'{"text": "\xff"}', "a.jsonl: line 1 is not JSON"),
    "a huge line of nonsense": file("a.jsonl", "x" * 50_000_000, "a.jsonl: line 1 is not JSON"),
    "row without the field": file(
        "a.jsonl", '{"body": 1}', "line 1 has no field 'text'", "config.data.text_field to one of body"
    ),
    "row with odd fields": file("a.jsonl", '{"a\\nb\\u001b": 1}', "line 1 has no field 'text'", "a b\\x1b"),
    "row with many fields": file(
        "a.jsonl", "{" + ",".join(f'"f{i}": 1' for i in range(10_000)) + "}", "line 1 has no field 'text'", "f7, ..."
    ),
    "row of numbers": file("a.jsonl", '{"text": 3}', "config.data.text_field='text' holds the type int"),
    "row that is no object": file("a.jsonl", '"text"', "a.jsonl: line 1 is not an object"),
    "rows without text": file("a.jsonl", '{"text": ""}\n{"text": null}', "a.jsonl holds no text"),
    "broken table": file("a.parquet", "PAR1", "cannot read", "a.parquet"),
    "table without the column": made(
        lambda d: parquet(d, "body", ["a"]),
        PATH,
        told=("has no column 'text'", "config.data.text_field to one of body"),
    ),
    "table of numbers": made(lambda d: parquet(d, "text", [1, 2]), PATH, told=("a.parquet", "holds the type int")),
    # token files
    "no description": described(None, "a.bin has no description: write", "a.json or tokens.json"),
    "broken description": described("{", "a.json", "write such as"),
    "description of another kind": described([1], "a.json", "write such as"),
    "deep description": described("[" * 100_000, "a.json", "write such as"),
    "description without a size": described({}, "a.json lacks 'vocab_size'", "write such as"),
    "description with half a size": described({"vocab_size": 100.5}, "a.json", "must be whole numbers"),
    "description of an odd dtype": described({"vocab_size": 9, "dtype": "int8"}, "dtype='int8' is neither uint16 nor"),
    "description with a wrong eos": described({"vocab_size": 9, "eos": 9}, "a.json", "0 <= eos < vocab_size"),
    "ids beyond the vocabulary": described({"vocab_size": 1}, "a.bin holds the id 1", "vocab_size 1"),
    "half an id": described({"vocab_size": 9}, "a.bin: 3 bytes are no uint16 tokens", "dtype", content=b"\0\0\0"),
    "no ids": described({"vocab_size": 9}, "a.bin: 0 bytes", content=b""),
    # tokenizers
    "no tokenizer": tiny(
        "--config.data.tokenizer=/nowhere", told=("config.data.tokenizer: /nowhere does not exist", "'bytes'")
    ),
    "folder without a tokenizer": made(text_folder, TOKENIZER, told=("tokenizer.json does not exist", "'bytes'")),
    "tokenizer of nobody": tiny(
        "--config.data.tokenizer=~nobody_here", told=("config.data.tokenizer=~nobody_here", "home")
    ),
    "tokenizer is a pipe": made(fifo, TOKENIZER, told=("config.data.tokenizer", "does not exist")),
    "broken tokenizer": made(
        lambda d: write(d, "t.json", "{"), TOKENIZER, told=("config.data.tokenizer: cannot read", "t.json")
    ),
    "binary tokenizer": made(
        lambda d: write(d, "t.json", b"\xff\0"), TOKENIZER, told=("config.data.tokenizer: cannot read", "t.json")
    ),
    "deep tokenizer": made(
        lambda d: write(d, "t.json", "[" * 100_000), TOKENIZER, told=("config.data.tokenizer: cannot read", "t.json")
    ),
    "another JSON": made(
        lambda d: write(d, "t.json", '{"a": 1}'), TOKENIZER, told=("t.json is not a Hugging Face tokenizer.json",)
    ),
    "damaged saved tokenizer": made(
        lambda d: write(d, "t.json", '{"kind": "ids"}'), TOKENIZER, told=("t.json is damaged", "'vocab_size'")
    ),
    "tokenizer that lacks a word": made(
        lambda d: write(d, "t.json", words_tokenizer(d).read_text().replace("[UNK]", "[NKU]", 1)),
        TOKENIZER,
        "--config.data.cache_dir={}",
        told=("t.json cannot encode this text", "[UNK]"),
    ),
    "text that is not UTF-8": made(
        lambda d: [words_tokenizer(d), write(d, "a/a.txt", b"caf\xe9 " * 99)][1].parent,
        PATH,
        f"{TOKENIZER}/../words.json",
        "--config.data.cache_dir={}",
        told=("a.txt is not UTF-8 (byte 3)", "config.data.tokenizer=bytes"),
    ),
}

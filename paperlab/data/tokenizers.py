"""Text to integers and back: bytes, Hugging Face `tokenizer.json`, or ids that only a token file knows.

A tokenizer has `vocab_size`, `bos` (begin of document), and

    encode(str) -> list[int]            encode_bytes(bytes) -> int32 [n]          decode(ids) -> str
    encode_document(bytes) -> (int32 [n], uint32 [n])   ids, and the UTF-8 bytes that each stands for
    bytes_per_token() -> float32 [V]    the same by id, where it depends on the id alone
    save(path)                          JSON, read by `load`

The bytes of `encode_document` add up to the length of the document exactly, whatever the tokenizer normalises, so bits
per byte mean the same for every tokenizer.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paperlab.data.files import expanded
from paperlab.errors import ConfigError


class Tokenizer(Protocol):
    vocab_size: int
    bos: int

    def encode(self, text: str) -> list[int]: ...

    def encode_bytes(self, content: bytes) -> np.ndarray: ...

    def encode_document(self, content: bytes) -> tuple[np.ndarray, np.ndarray]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def bytes_per_token(self) -> np.ndarray: ...

    def state(self) -> dict[str, Any]: ...

    def save(self, path: str | Path) -> None: ...


class _Saved:
    def save(self, path: str | Path) -> None:
        """Writes the tokenizer as JSON."""
        Path(path).write_text(json.dumps(self.state(), ensure_ascii=False), encoding="utf-8")  # type: ignore[attr-defined]


class ByteTokenizer(_Saved):
    """Ids 0 to 255 are the bytes of UTF-8; 256 begins a document."""

    vocab_size = 257
    bos = 256

    def encode(self, text: str) -> list[int]:
        try:
            return list(text.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError as error:
            raise ConfigError(f"{text[error.start : error.end]!r} is neither a character nor a byte") from None

    def encode_bytes(self, content: bytes) -> np.ndarray:
        return np.frombuffer(content, np.uint8).astype(np.int32)

    def encode_document(self, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        return self.encode_bytes(content), np.ones(len(content), np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids beyond the bytes (document borders, padding of the vocabulary) are left out."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", errors="replace")

    def bytes_per_token(self) -> np.ndarray:
        return (np.arange(257) < 256).astype(np.float32)

    def state(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class IdTokenizer(_Saved):
    """Ids of a token file whose tokenizer is not at hand: trains and measures, but has no text and no bytes."""

    def __init__(self, vocab_size: int, bos: int):
        self.vocab_size, self.bos = vocab_size, bos

    def encode(self, text: str) -> list[int]:
        raise ConfigError(
            "config.data.tokenizer: these are bare token ids: give their tokenizer.json to write or read text"
        )

    def encode_bytes(self, content: bytes) -> np.ndarray:
        return np.asarray(self.encode(""), np.int32)

    def encode_document(self, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        return self.encode_bytes(content), np.zeros(0, np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def bytes_per_token(self) -> np.ndarray:
        return np.zeros(self.vocab_size, np.float32)

    def state(self) -> dict[str, Any]:
        return {"kind": "ids", "vocab_size": self.vocab_size, "bos": self.bos}


class HuggingFaceTokenizer(_Saved):
    """A `tokenizer.json`, without its special tokens, truncation and padding.

    Args:
      definition: the text of the tokenizer.json.
      bos: token that begins a document; None: the first of `BOS_NAMES` in the vocabulary, else one new id at its end.
      where: what to call it in errors.

    Raises:
      ConfigError: the package is missing or the definition is not a tokenizer.
    """

    BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "<|bos|>", "[BOS]", "[CLS]", "</s>", "<eos>")

    def __init__(self, definition: str, bos: str | None = None, where: str = "tokenizer.json"):
        try:
            import tokenizers
        except ImportError:
            raise ConfigError(f"{where} needs the package tokenizers: pip install 'paperlab[hf]'") from None
        with _told(f"{where} is not a Hugging Face tokenizer.json"):
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._definition, self._where = definition, where
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size >= 2**31:
            raise ConfigError(f"{where} has the id {self.vocab_size - 1}: ids must fit in 31 bits")
        names = self.BOS_NAMES if bos is None else (bos,)
        self.bos_token = next((name for name in names if name in vocabulary), None)
        self.bos = vocabulary[self.bos_token] if self.bos_token is not None else self.vocab_size
        self.vocab_size = max(self.vocab_size, self.bos + 1)

    def encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{text[error.start : error.end]!r} is no character: {self._where} takes UTF-8") from None
        return self._encoding(text).ids

    def encode_bytes(self, content: bytes) -> np.ndarray:
        return self.encode_document(content)[0]

    def encode_document(self, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Token i ends where its last character ends; ids within one character (byte fallback) share its bytes."""
        text = content.decode("utf-8")
        encoding = self._encoding(text)
        ids = np.asarray(encoding.ids, np.int32)
        if not len(ids):
            return ids, np.zeros(0, np.uint32)
        ends = np.asarray([end for _, end in encoding.offsets], np.int64)
        if len(content) != len(text):
            ends = _byte_offsets(content)[ends]
        ends = np.maximum.accumulate(ends)
        ends[-1] = len(content)
        return ids, np.diff(ends, prepend=0).astype(np.uint32)

    def _encoding(self, text: str) -> Any:
        with _told(f"{self._where} cannot encode this text; its vocabulary lacks something"):
            return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        limit = self._tokenizer.get_vocab_size(with_added_tokens=True)
        kept = [i for i in map(int, ids) if 0 <= i < limit and i != self.bos]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def bytes_per_token(self) -> np.ndarray:
        """Exact for byte-level vocabularies; for others the length of the token's own text."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        byte_level = '"ByteLevel"' in self._definition
        special = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        table = np.zeros(self.vocab_size, np.float32)
        for token, i in vocabulary.items():
            table[i] = len(token.encode()) if token in special else _token_bytes(token, byte_level)
        table[self.bos] = 0
        return table

    def state(self) -> dict[str, Any]:
        return {"kind": "huggingface", "bos_token": self.bos_token, "tokenizer": json.loads(self._definition)}


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the package tokenizers, which raises a bare Exception, and panics with not even that, as one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ConfigError(f"{what}: {str(error).split(chr(10))[0]}") from None


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names: "bytes", a tokenizer.json, the folder it lies in, or a saved one.

    Raises:
      ConfigError: no such file, or not a tokenizer.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = expanded(name, "config.data.tokenizer")
    try:
        path = path / "tokenizer.json" if path.is_dir() else path
        found = path.is_file()
    except OSError as error:
        raise ConfigError(f"config.data.tokenizer: cannot read {path}: {error.strerror or error}") from None
    if not found:
        raise ConfigError(f"config.data.tokenizer: {path} does not exist: give 'bytes' or the path of a tokenizer.json")
    return load(path)


def load(path: str | Path) -> Tokenizer:
    """Reads what `save` wrote, or a plain tokenizer.json (with the tokenizer_config.json beside it, if any)."""
    path = Path(path)
    try:
        definition = path.read_text(encoding="utf-8")
        state = json.loads(definition)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"config.data.tokenizer: cannot read {path}: {error}") from None
    kind = state.get("kind", "") if isinstance(state, dict) else ""
    where = f"config.data.tokenizer: {path}"
    try:
        if kind == "bytes":
            return ByteTokenizer()
        if kind == "ids":
            return IdTokenizer(int(state["vocab_size"]), int(state["bos"]))
        if kind == "huggingface":
            return HuggingFaceTokenizer(json.dumps(state["tokenizer"], ensure_ascii=False), state["bos_token"], where)
    except (KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{where} is damaged: {type(error).__name__} {error}; save the tokenizer anew") from None
    return HuggingFaceTokenizer(definition, _declared_bos(path.with_name("tokenizer_config.json")), where)


def _declared_bos(path: Path) -> str | None:
    """The bos_token (or eos_token) of a tokenizer_config.json, where there is one."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for key in ("bos_token", "eos_token"):
        token = config.get(key) if isinstance(config, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            return token
    return None


def _byte_offsets(content: bytes) -> np.ndarray:
    """Byte offset of every character, and the length: int64 [characters + 1]."""
    first_bytes = (np.frombuffer(content, np.uint8) & 0xC0) != 0x80
    return np.append(np.flatnonzero(first_bytes), len(content))


def _token_bytes(token: str, byte_level: bool) -> int:
    if byte_level:  # one printable stand-in a byte
        return len(token)
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode())

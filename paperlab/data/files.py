"""Files of documents: text (one document a file), .jsonl and .parquet (one document a row), each perhaps gzipped.

A path names one file, a folder (searched recursively, hidden files left out) or a glob. Every failure is one line with
the file, and the line in it where there is one.
"""

import contextlib
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from paperlab.data.documents import Document, path_hash, row_hashes
from paperlab.errors import ConfigError

_PROSE = ("txt", "text", "md", "rst", "tex", "html", "xml", "csv", "tsv", "yaml", "yml", "toml")
_CODE = ("py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "java", "js", "ts", "go", "rs", "jl", "r", "sh")
TEXT_SUFFIXES = frozenset(f".{name}" for name in (*_PROSE, *_CODE))
ROW_SUFFIXES = frozenset({".jsonl", ".parquet"})
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def from_path(path: str, text_field: str, field: str) -> Iterator[Document]:
    """Documents of the files that `path` names."""
    files, root = find_files(path, field)
    several = len(files) > 1
    for file in files:
        name = file.relative_to(root).as_posix()
        if suffix(file) not in ROW_SUFFIXES:
            yield Document(name, _text(file), path_hash(name))
            continue
        rows = list(_ROWS[suffix(file)](file, text_field))
        hashes = row_hashes(len(rows), path_hash(name) if several else 0)
        yield from (Document(f"{name}#{i}", row, int(h)) for i, (row, h) in enumerate(zip(rows, hashes, strict=True)))


def find_files(path: str, field: str = "config.data.path") -> tuple[list[Path], Path]:
    """Files that a file name, a folder or a glob stands for, sorted, and the folder their names are relative to."""
    start = expanded(path, field)
    try:
        if start.is_file():
            return [start], start.parent
        if start.is_dir():
            known = TEXT_SUFFIXES | ROW_SUFFIXES | {".bin"}
            files = sorted(f for f in start.rglob("*") if suffix(f) in known and not _hidden(f, start) and f.is_file())
            root = start
        else:
            files = sorted(Path(f) for f in glob.glob(str(start), recursive=True) if Path(f).is_file())
            root = _common_folder(files)
    except OSError as error:
        raise ConfigError(f"{field}: cannot read {path}: {error.strerror or error}") from None
    if any(suffix(f) == ".bin" for f in files):
        files = [f for f in files if suffix(f) != ".json"]  # their descriptions
    if not files and start.is_dir():
        raise ConfigError(f"{field}: no text in {path}: a folder is searched for .txt .md .py .jsonl .parquet .bin ...")
    if not files:
        raise ConfigError(f"{field}: {path} {_no_file(start)}: give a file, a folder or a glob")
    if len({suffix(f) == ".bin" for f in files}) > 1:
        raise ConfigError(f"{field}: {path} mixes .bin token files with text: name one kind by a glob such as '*.bin'")
    return files, root


def expanded(path: str, field: str) -> Path:
    """The path with the `~` of a user replaced. Raises ConfigError where nobody knows that user's home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{field}={path}: {error}") from None


def _no_file(path: Path) -> str:
    """Why a path is neither a file nor a folder."""
    if path.is_symlink() and not path.exists():
        return f"is a link to {os.readlink(path)}, which does not exist"
    kinds = {"a named pipe": path.is_fifo, "a socket": path.is_socket}
    kinds |= {"a device": lambda: path.is_char_device() or path.is_block_device()}
    kind = next((name for name, holds in kinds.items() if holds()), "")
    return f"is {kind}" if kind else "does not exist"


def read_bytes(path: Path) -> bytes:
    """A file, gunzipped if it is called .gz."""
    with _reading(path):
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Every failure to read is one line."""
    try:
        yield
    except MemoryError:
        raise ConfigError(
            f"cannot read {path}: it does not fit in memory; cut it up, or make token files (.bin)"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot read {path}: {reason}") from None


def text_of(row: object, text_field: str, where: str) -> bytes:
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is not an object: write one {{{json.dumps(text_field)}: ...}} a line")
    if text_field not in row:
        raise ConfigError(f"{where} has no field {text_field!r}: set config.data.text_field to one of {_listed(row)}")
    value = row[text_field]
    if value is None:
        return b""
    if not isinstance(value, str):
        raise ConfigError(
            f"{where}: config.data.text_field={text_field!r} holds the type {type(value).__name__}, not text"
        )
    return value.encode("utf-8", "replace")


def _listed(names: Iterable[object]) -> str:
    """The first few of some names."""
    known = list(names)
    return ", ".join(map(str, known[:8])) + ", ..." * (len(known) > 8)


def _text(file: Path) -> bytes:
    content = read_bytes(file)
    if content.startswith(UTF16_MARKS):
        raise ConfigError(f"{file} is UTF-16: convert it to UTF-8, such as by iconv -f UTF-16 -t UTF-8")
    if (zero := content.find(b"\0")) >= 0:
        raise ConfigError(
            f"{file} is binary (a zero byte at offset {zero}): config.data.path takes text, .jsonl, .parquet, .bin"
        )
    return content


def _jsonl(file: Path, text_field: str) -> Iterator[bytes]:
    with _reading(file), gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}: line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{where} is not JSON: {error}") from None
            yield text_of(row, text_field, where)


def _parquet(file: Path, text_field: str) -> Iterator[bytes]:
    try:
        from pyarrow import lib, parquet
    except ImportError:
        raise ConfigError(f"{file}: .parquet needs the package pyarrow: pip install 'paperlab[parquet]'") from None
    try:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        if text_field not in columns:
            raise ConfigError(
                f"{file} has no column {text_field!r}: set config.data.text_field to one of {_listed(columns)}"
            )
        for batch in table.iter_batches(columns=[text_field]):
            for row in batch.to_pylist():
                yield text_of(row, text_field, str(file))
    except ConfigError:
        raise
    except (OSError, ValueError, MemoryError, lib.ArrowException) as error:
        raise ConfigError(f"cannot read {file}: {str(error).split(chr(10))[0] or type(error).__name__}") from None


_ROWS = {".jsonl": _jsonl, ".parquet": _parquet}


def suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _common_folder(files: list[Path]) -> Path:
    folders = [f.parent for f in files] or [Path()]
    root = folders[0]
    while not all(f.is_relative_to(root) for f in folders):
        root = root.parent
    return root

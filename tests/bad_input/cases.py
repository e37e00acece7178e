"""What a case of bad input is, and the files that cases are made of."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.test_run import TINY

Arguments = Callable[[Path], list[str]]


class Case(NamedTuple):
    """arguments: of a folder of its own, what is written after the program's name; told: words that the one line must hold."""

    arguments: Arguments
    told: tuple[str, ...]
    status: int = 2


def plain(*arguments: str, told: tuple[str, ...] | str, status: int = 2) -> Case:
    """A case whose whole command line is given."""
    return Case(lambda folder: list(arguments), _words(told), status)


def tiny(*arguments: str, told: tuple[str, ...] | str, variant: str = "") -> Case:
    """A case of a tiny run of the language model on good text with some more arguments."""

    def command(folder: Path) -> list[str]:
        return with_defaults(arguments, text_folder(folder), variant)

    return Case(command, _words(told))


def made(make: Callable[[Path], object], *arguments: str, told: tuple[str, ...] | str) -> Case:
    """A case with files: `{}` in the arguments stands for what `make(folder)` returns."""

    def command(folder: Path) -> list[str]:
        place = str(make(folder))
        return with_defaults([argument.replace("{}", place) for argument in arguments], text_folder(folder))

    return Case(command, _words(told))


def with_defaults(arguments: Sequence[str], text: Path, variant: str = "") -> list[str]:
    """A tiny run of one step with these arguments; a field that they set is not set twice, which would be a sweep."""
    config, *rest = TINY
    defaults = [config + variant, *rest, f"--config.data.path={text}", "--config.train.steps=1"]
    named = {argument.partition("=")[0] for argument in arguments}
    return [*(default for default in defaults if default.partition("=")[0] not in named), *arguments]


def experiment(source: str, *, told: tuple[str, ...] | str, variant: str = "") -> Case:
    """A case of an experiment file with this source."""

    def command(folder: Path) -> list[str]:
        return [f"--config={write(folder, 'experiment.py', source)}{variant}"]

    return Case(command, _words(told))


def _words(told: tuple[str, ...] | str) -> tuple[str, ...]:
    return (told,) if isinstance(told, str) else told


def write(folder: Path, name: str, content: bytes | str) -> Path:
    """A file with this content."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def text_folder(folder: Path) -> Path:
    """Good text in a few files."""
    for i in range(4):
        write(folder, f"text/{i}.txt", f"document {i} " + "abc " * (40 + 3 * i))
    return folder / "text"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.txt")
    return folder / "pipe.txt"


def unix_socket(folder: Path) -> Path:
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket.txt")
    finally:
        os.chdir(here)
    return folder / "socket.txt"


def dangling(folder: Path) -> Path:
    (folder / "link.txt").symlink_to(folder / "gone.txt")
    return folder / "link.txt"


def tokens(folder: Path, sidecar: object, content: bytes = b"\1\0" * 64) -> Path:
    """A file of uint16 ids with this description beside it (None: without one)."""
    if sidecar is not None:
        write(folder, "a.json", sidecar if isinstance(sidecar, str) else json.dumps(sidecar))
    return write(folder, "a.bin", content)


def words_tokenizer(folder: Path) -> Path:
    """A tokenizer that takes UTF-8 only."""
    from tests.data.test_tokenizers import lower_words

    return write(folder, "words.json", lower_words())


def parquet(folder: Path, column: str, values: list) -> Path:
    """A table of one column."""
    import pyarrow
    from pyarrow import parquet as format

    format.write_table(pyarrow.table({column: values}), folder / "a.parquet")
    return folder / "a.parquet"

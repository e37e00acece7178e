"""Where documents come from: the standard library, files, Hugging Face datasets.

data.path or data.source -> documents -> (train, validation)
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from paperlab.data.documents import Document, capped, filled, path_hash, row_hashes, split
from paperlab.data.files import from_path, read_bytes, text_of
from paperlab.errors import ConfigError

# pydoc_data is 0.8 MB of manual in one generated file: where it falls, it outweighs the rest of the validation split.
STDLIB_SKIPPED = frozenset({"test", "tests", "site-packages", "dist-packages", "idlelib", "pydoc_data", "__pycache__"})


def read_documents(data: ConfigDict) -> tuple[list[Document], list[Document]]:
    """Train and validation documents of every source but token files, each in its final order.

    Raises:
      ConfigError: one line that names the file or field and says how to mend it.
    """
    if data.path:
        documents = list(from_path(data.path, data.text_field, "config.data.path"))
    elif data.source == "stdlib":
        documents = list(from_stdlib())
    elif data.source == "hf":
        documents = list(from_hf(data, data.hf_split))
    elif data.source == "files":
        raise ConfigError("config.data.path is empty: give a file, a folder or a glob for config.data.source=files")
    else:
        raise ConfigError(f"config.data.source={data.source!r}: choose one of stdlib, files, hf")
    if data.validation_path:
        held_out = list(from_path(data.validation_path, data.text_field, "config.data.validation_path"))
    elif data.source == "hf" and not data.path and data.hf_validation_split:
        held_out = list(from_hf(data, data.hf_validation_split))
    else:
        documents, held_out = split(filled(documents), data.validation_share)
    train, validation = filled(documents), filled(held_out)
    if not train:
        raise ConfigError(f"{_where(data)} holds no text for training: give documents that are not empty")
    if data.max_bytes:
        share = data.validation_share if validation else 0.0
        train = capped(train, int(data.max_bytes * (1 - share)))
        validation = capped(validation, int(data.max_bytes * share) or 1)
    return train, validation


def from_stdlib() -> Iterator[Document]:
    """The interpreter's own library: every .py that people wrote (no tests, no packages, no build configuration)."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        folders = name.split("/")[:-1]
        made_by_build = path.name.startswith("_sysconfigdata") or any(f.startswith("config-") for f in folders)
        if not made_by_build and STDLIB_SKIPPED.isdisjoint(folders):
            yield Document(name, read_bytes(path), path_hash(name))


def from_hf(data: ConfigDict, split_name: str) -> Iterator[Document]:
    """Rows of a Hugging Face dataset of the hub, or of a folder that `save_to_disk` wrote."""
    if not data.hf_name:
        raise ConfigError(
            "config.data.hf_name is empty: name a dataset of the hub or a folder for config.data.source=hf"
        )
    try:
        import datasets
    except ImportError:
        raise ConfigError("config.data.source=hf needs the package datasets: pip install 'paperlab[hf]'") from None
    try:
        if Path(data.hf_name).is_dir() and not list(Path(data.hf_name).glob("*.py")):
            table = datasets.load_from_disk(data.hf_name)
            if isinstance(table, dict) and split_name not in table:
                raise LookupError(f"there are only {', '.join(table)}")
            if not isinstance(table, dict) and split_name != data.hf_split:
                raise LookupError("the folder holds one split: leave config.data.hf_validation_split empty")
            table = table[split_name] if isinstance(table, dict) else table
        else:
            streaming = data.max_bytes > 0
            table = datasets.load_dataset(data.hf_name, data.hf_config or None, split=split_name, streaming=streaming)
    except Exception as error:  # the package raises many kinds, of other packages too
        line = str(error).strip().split("\n")[0]
        raise ConfigError(f"config.data.hf_name={data.hf_name!r}, split {split_name!r}: {line}") from None
    rows, size = [], 0
    for i, row in enumerate(table):
        rows.append(text_of(row, data.text_field, f"{data.hf_name}: row {i + 1}"))
        size += len(rows[-1])
        if data.max_bytes and size >= data.max_bytes:
            break
    for i, (row, h) in enumerate(zip(rows, row_hashes(len(rows)), strict=True)):
        yield Document(f"{data.hf_name}/{split_name}#{i}", row, int(h))


def _where(data: ConfigDict) -> str:
    return f"config.data.path={data.path}" if data.path else f"config.data.source={data.source}"

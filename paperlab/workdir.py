"""The work directory of a run: where it is, what was asked of it, and whether this is the same run again.

    config.json      the resolved config of the latest invocation
    overrides.json   every invocation: date, command-line overrides, and which free fields it changed
    summary.json     written at the end

The same command again resumes. What changes the mathematics (`config.mathematics`) may not differ from the first time.
"""

import datetime
import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paperlab.config import ConfigError, differences, digest, flatten, from_json, mathematics, to_json


def default_path(config: ConfigDict, root: str = "runs") -> Path:
    """`runs/<slug>[-<variant>]-<8 hex digits of the mathematics>`."""
    name = "-".join(part for part in (config.slug or "run", config.variant, digest(config)) if part)
    return Path(root) / name


def read_config(path: Path) -> ConfigDict:
    """The config of an existing run. Raises ConfigError where there is none or it is damaged."""
    file = path / "config.json"
    if not file.is_file():
        raise ConfigError(f"{path} is not the work directory of a run: it has no config.json")
    try:
        return from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def prepare(path: Path, config: ConfigDict, overrides: dict[str, str]) -> bool:
    """Makes or re-enters the work directory and records this invocation.

    Returns:
      whether the directory held a run of the same mathematics before.

    Raises:
      ConfigError: the path is a file or not writable, or holds a run whose mathematics differs (the difference is shown).
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--workdir: {path} is a file; name a directory")
    known, changed = (path / "config.json").is_file(), {}
    if known:
        old = read_config(path)
        refuse_other_mathematics(path, old, config)
        changed = differences(dict(flatten(json.loads(to_json(old)))), dict(flatten(json.loads(to_json(config)))))
    try:
        path.mkdir(parents=True, exist_ok=True)
        record(path, config, overrides, changed)
    except OSError as error:
        raise ConfigError(f"--workdir: cannot write to {path}: {error.strerror or error}") from error
    return known


def refuse_other_mathematics(path: Path, old: ConfigDict, new: ConfigDict) -> None:
    """Raises ConfigError that lists what differs, if anything that changes the mathematics does."""
    different = differences(mathematics(old), mathematics(new))
    if different:
        shown = "; ".join(f"config.{name}: {was!r} -> {now!r}" for name, (was, now) in list(different.items())[:8])
        raise ConfigError(
            f"{path} holds a run of another configuration ({shown}); choose another --workdir, or undo the change"
        )


def record(path: Path, config: ConfigDict, overrides: dict[str, str], changed: dict[str, Any]) -> None:
    """Writes config.json and appends this invocation to overrides.json, each atomically."""
    history_file = path / "overrides.json"
    history = json.loads(history_file.read_text()) if history_file.is_file() else []
    changed = {name: [was, now] for name, (was, now) in changed.items()}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    history.append({"date": date, "overrides": overrides, "changed": changed})
    write_atomically(history_file, json.dumps(history, indent=2) + "\n")
    write_atomically(path / "config.json", to_json(config))


def write_atomically(file: Path, text: str) -> None:
    """Writes a file such that a reader sees the old text or the new one, never a part."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)

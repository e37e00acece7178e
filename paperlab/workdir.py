"""The work directory of a run: where it is, what was asked of it, and whether this is the same run again.

    config.json      the resolved config of the latest invocation
    overrides.json   every invocation: date, command-line overrides, and which free fields it changed
    summary.json     written at the end
    .lock            held by the process that trains here (`lock`)

The same command again resumes. What changes the mathematics (`config.mathematics`) may not differ from the first time.
"""

import datetime
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paperlab import lock
from paperlab.config import ConfigError, differences, digest, flatten, from_json, mathematics, to_json
from paperlab.disk import checksum, write_atomically


def default_path(config: ConfigDict, root: str = "runs") -> Path:
    """`runs/<slug>[-<variant>]-<8 hex digits of the mathematics>`."""
    name = "-".join(part for part in (config.slug or "run", config.variant, digest(config)) if part)
    return Path(root) / name


def read_config(path: Path) -> ConfigDict:
    """The config of an existing run; where config.json is damaged or lost, the copy in the newest checkpoint.

    Raises:
      ConfigError: there is neither.
    """
    file = path / "config.json"
    copy, step = _checkpointed_config(path)
    try:
        config = from_json(file.read_text(encoding="utf-8"))
        problem = "" if copy is None or mathematics(config) == mathematics(copy) else "is not what was trained"
    except (FileNotFoundError, NotADirectoryError):
        problem = "is missing"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = f"is damaged ({str(error).splitlines()[0][:100] if str(error) else type(error).__name__})"
    if not problem:
        return config
    if copy is not None:
        print(f"Note: {file} {problem}: the copy in checkpoint {step} is used", file=sys.stderr)
        return copy
    if problem == "is missing":
        raise ConfigError(f"{path} is not the work directory of a run: it has no config.json")
    raise ConfigError(f"{file} {problem}, and no checkpoint has a copy; remove it, or name another --workdir")


def _checkpointed_config(path: Path) -> tuple[ConfigDict | None, int]:
    """The config that the newest checkpoint with sound metadata was written under, and its step."""
    steps = [int(folder.name) for folder in (path / "checkpoints").glob("[0-9]*") if folder.name.isdecimal()]
    for step in sorted(steps, reverse=True):
        try:
            folder = path / "checkpoints" / str(step)
            stored = json.loads((folder / "metadata" / "metadata").read_text(encoding="utf-8"))
            if stored["sha256"] == checksum(stored["metadata"]):
                return from_json(json.dumps(stored["metadata"]["config"])), step
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return None, 0


@contextmanager
def entered(path: Path, config: ConfigDict, overrides: dict[str, str]) -> Iterator[bool]:
    """Context that holds the work directory for one run, with this invocation recorded; gives what `prepare` returns.

    A directory that was made for a run which then turns out to be refused is removed again. Of several processes the first
    one holds, writes and decides.

    Raises:
      ConfigError: another run holds the directory, or what `prepare` raises.
    """
    import jax

    with ExitStack() as stack:
        error: ConfigError | None = None
        known = False
        if jax.process_index() == 0:
            try:
                known = stack.enter_context(_alone(path, config, overrides))
            except ConfigError as refused:
                error = refused
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.broadcast_one_to_all(error is not None) and error is None:
                error = ConfigError(f"the first process refused {path}; its own message says why")
        if error:
            raise error
        yield known


@contextmanager
def _alone(path: Path, config: ConfigDict, overrides: dict[str, str]) -> Iterator[bool]:
    new = not path.exists()
    with lock.hold(path):
        try:
            yield prepare(path, config, overrides)
        except ConfigError:
            if new and not (path / "checkpoints").exists():
                shutil.rmtree(path, ignore_errors=True)
            raise


def prepare(path: Path, config: ConfigDict, overrides: dict[str, str]) -> bool:
    """Makes or re-enters the work directory and records this invocation.

    Returns:
      whether the directory held a run of the same mathematics before.

    Raises:
      ConfigError: the path is a file or not writable, or holds a run whose mathematics differs (the difference is shown).
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--workdir: {path} is a file; name a directory")
    known, changed = (path / "config.json").exists() or _checkpointed_config(path)[0] is not None, {}
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
    history = _history(history_file)
    changed = {name: [was, now] for name, (was, now) in changed.items()}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    history.append({"date": date, "overrides": overrides, "changed": changed})
    write_atomically(history_file, json.dumps(history, indent=2) + "\n")
    write_atomically(path / "config.json", to_json(config))


def _history(file: Path) -> list[Any]:
    """The invocations so far. A damaged file is set aside, with a word on stderr: nothing depends on it."""
    try:
        history = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(history, list):
            return history
    except FileNotFoundError:
        return []
    except ValueError:
        pass
    aside = file.with_name(f"{file.name}.damaged")
    os.replace(file, aside)
    print(f"Note: {file} is damaged: set aside as {aside.name}, and begun anew", file=sys.stderr)
    return []

"""What went wrong when a file was written, in words that say how to mend it; and files that survive a power cut."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

REASONS = (
    (
        (errno.ENOSPC, errno.EDQUOT),
        ("No space left", "Disk quota"),
        "the disk is full; free some space and run the same command again",
    ),
    (
        (errno.EROFS,),
        ("Read-only file system",),
        "the file system is read-only; make it writable and run the same command again",
    ),
    (
        (errno.EFBIG,),
        ("File too large",),
        "it would be larger than the system allows (`ulimit -f`); raise the limit and run the same command again",
    ),
    (
        (errno.EACCES, errno.EPERM),
        ("Permission denied", "PERMISSION_DENIED", "Operation not permitted"),
        "permission denied; change the folder's owner or mode and run the same command again",
    ),
)


class WriteError(OSError):
    """A file could not be written; the message is one line."""

    def __init__(self, path: Path, error: BaseException):
        super().__init__(f"{path} could not be written: {why(error)}")


def why(error: BaseException) -> str:
    """The reason, and the mend where there is one; libraries wrap what the system said, so their text is searched too."""
    seen: BaseException | None = error
    while seen is not None:
        for numbers, signs, words in REASONS:
            if getattr(seen, "errno", None) in numbers or any(sign in str(seen) for sign in signs):
                return words
        seen = seen.__cause__ or seen.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def write_atomically(file: Path, text: str) -> None:
    """Writes a file such that a reader sees the old text or the new one, never a part, even after a power cut.

    Raises:
      WriteError: it could not be written; the old text stands.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise WriteError(file, error) from error


def checksum(value: Any) -> str:
    """The SHA-256 of a JSON value, however its keys are ordered."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flush_to_disk(folder: Path) -> None:
    """Returns when everything below `folder`, and its name in its parent, would survive a power cut.

    Files that the system has written out already, which after a while is all of them, cost next to nothing.
    """
    for path in [*folder.rglob("*"), folder, folder.parent]:
        try:
            number = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            os.fsync(number)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot is no reason to stop
                raise
        finally:
            os.close(number)

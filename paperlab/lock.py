"""One run at a time in a work directory.

    <work directory>/.lock     who holds it: {"host", "process", "since"}

The lock is the operating system's (`flock`), so it ends with the process that holds it, however that ends; what the file
says is only for the message of the one who is refused.
"""

import datetime
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paperlab.errors import ConfigError

NAME = ".lock"
_BUSY = {errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN}
_held: dict[Path, int] = {}  # by this process: the thread that holds it


@contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Context in which no other run can hold `workdir`, which is made; within it the same thread may ask again.

    A file system without locks gets a warning on stderr, and the run goes on.

    Raises:
      ConfigError: another run holds it (the message says who), or the directory cannot be written.
    """
    place = workdir.absolute()
    if _held.get(place) == threading.get_ident():
        yield
        return
    file = _open(workdir)
    try:
        _lock(file, workdir)
        _held[place] = threading.get_ident()
        try:
            yield
        finally:
            _held.pop(place, None)
            _say(file, "")
    finally:
        os.close(file)


def _open(workdir: Path) -> int:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return os.open(workdir / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if workdir.exists() and not workdir.is_dir():
            raise ConfigError(f"--workdir: {workdir} is a file; name a directory") from error
        raise ConfigError(f"--workdir: cannot write to {workdir}: {error.strerror or error}") from error


def _lock(file: int, workdir: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:
        print(f"Note: this system has no flock: nothing keeps a second run out of {workdir}", file=sys.stderr)
    except OSError as error:
        if error.errno in _BUSY:
            raise ConfigError(
                f"--workdir: {workdir} is in use by {_holder(file)}; wait for its end, or name another --workdir"
            ) from None
        why = error.strerror or error
        print(f"Note: {workdir} cannot be locked ({why}): nothing keeps a second run out of it", file=sys.stderr)
        return
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _say(file, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since}) + "\n")


def _say(file: int, text: str) -> None:
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)
    except OSError:  # a full disk: the lock itself holds
        return


def _holder(file: int) -> str:
    try:
        said = json.loads(os.pread(file, 4096, 0))
        return f"process {int(said['process'])} on {said['host']} since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"

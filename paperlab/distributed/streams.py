"""What several processes write to the terminal: process 0 speaks, the others only warn, and the runtime's pages are sifted."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

from paperlab.distributed import relay

_helpers: list[subprocess.Popen] = []  # a relay outlives this process on purpose: nothing waits for it


class Prefixed:
    """A text stream whose every line begins with "[process N] "."""

    def __init__(self, stream: TextIO, process: int):
        self._stream, self._prefix, self._at_start = stream, f"[process {process}] ", True

    def write(self, text: str) -> int:
        """Writes text; a line is passed on with its prefix in one piece."""
        out = ""
        for line in text.splitlines(keepends=True):
            out += (self._prefix if self._at_start else "") + line
            self._at_start = line.endswith("\n")
        self._stream.write(out)
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def divide(process: int) -> None:
    """Gives Python its own standard streams, and the runtime's (descriptors 1 and 2) to the relay.

    On processes other than 0 standard output leads nowhere and standard error names the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    errors = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    if process:
        output = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    else:
        output = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding, errors="backslashreplace")
    command = [sys.executable, "-I", "-S", relay.__file__, str(process)]
    helper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
    )
    if helper.stdin is None:
        return
    os.dup2(helper.stdin.fileno(), 2)
    os.dup2(helper.stdin.fileno(), 1)
    helper.stdin.close()
    _helpers.append(helper)
    sys.stdout = output
    sys.stderr = Prefixed(errors, process) if process else errors  # type: ignore[assignment]


def tell_relay(name: str, value: str | Path = "") -> None:
    """Says something to the relay, if there is one."""
    try:
        os.write(2, f"{relay.MARK}{name}={value}\n".encode())
    except OSError:
        return

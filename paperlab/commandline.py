"""What every program's command line shares: flags that are refused in one line, and errors told in one line.

parser = Parser(prog="python -m paperlab.generate", description="...")
parser.add_argument("--tokens", type=whole(1), default=200)
flags = parser.read(argv)                                ConfigError for what cannot be read
...
return tell(error)                                       "error: ..." on stderr, and the exit status
"""

import argparse
import contextlib
import errno
import math
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from paperlab.errors import ConfigError, one_line

FAILED, ASKED_WRONGLY, PIPE_CLOSED = 1, 2, 141


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are ConfigErrors that name the flag."""

    def __init__(self, **options: Any):
        super().__init__(**{"allow_abbrev": False, **options})

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The flags. Raises ConfigError for one that there is not, or that cannot be read."""
        flags, rest = self.parse_known_args(sys.argv[1:] if argv is None else list(argv))
        if rest:
            raise ConfigError(self.unknown(rest[0], flags))
        return flags

    def unknown(self, argument: str, flags: argparse.Namespace) -> str:
        """What to say of an argument that nothing takes."""
        del flags
        if not argument.startswith("-"):
            return f"{argument!r} is no flag: flags are written --name=value (--help lists them)"
        name = argument.partition("=")[0]
        known = [flag for flag in self._option_string_actions if flag.startswith("--") and flag != "--help"]
        near = get_close_matches(name[:100], known, n=1)
        return f"there is no flag {name}" + (f"; did you mean {near[0]}?" if near else "; --help lists them")

    def error(self, message: str) -> NoReturn:
        """Instead of the usage and an exit."""
        message = message.removeprefix("argument ")
        wanted = message.removeprefix("the following arguments are required: ")
        if wanted != message:
            raise ConfigError(f"{wanted} is missing; --help shows how it is said")
        flag, _, reason = message.partition(": ")
        if reason == "expected one argument":
            raise ConfigError(f"{flag} needs a value: {flag}=VALUE")
        if reason.startswith("ignored explicit argument"):
            raise ConfigError(f"{flag} takes no value: say {flag} alone")
        raise ConfigError(message)


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Reads a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text} must be from {low} to {high}")
        return number

    return read


def number(low: float) -> Callable[[str], float]:
    """Reads a finite number from `low` on."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} must be a finite number, at least {low:g}")
        return value

    return read


def path_text(text: str) -> str:
    """Reads a path: not empty, without zero bytes, and short enough for the system."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path: name a file or a directory")
    try:
        os.lstat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise argparse.ArgumentTypeError(f"{text[:40]}... is no path: {error.strerror}") from None
    return text


def describe(error: BaseException) -> tuple[str, int]:
    """(line, exit status): 2 where the user can mend what was asked for, else 1."""
    if isinstance(error, BrokenPipeError):
        return "nobody reads the output any more", PIPE_CLOSED
    if isinstance(error, ConfigError):
        return f"error: {one_line(error)}", ASKED_WRONGLY
    what = one_line(str(error).strip().split("\n")[0])
    if isinstance(error, MemoryError):
        what = f"this machine's memory is full{f' ({what})' if what else ''}"
    elif not what or not isinstance(error, ValueError | RuntimeError | OSError):
        what = f"{type(error).__name__}{f': {what}' if what else ''}"
    return f"error: {what} (--debug shows where)", FAILED


def tell(error: BaseException) -> int:
    """Prints one line for what went wrong to stderr; returns the exit status."""
    line, status = describe(error)
    if status == PIPE_CLOSED:
        close_output()
    print(line, file=sys.stderr)
    return status


def close_output() -> None:
    """After a BrokenPipeError: sends what is still to be written to stdout nowhere, so that the exit is quiet."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def print_any_text() -> None:
    """Lets stdout take every text: what its encoding lacks is written as an escape, not raised as an error."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")

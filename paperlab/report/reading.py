"""Files as they are found: whole, half written, damaged, empty, or not files at all.

Every reader gives what it could read and a sentence for what it could not; none raises for the state of a file.
"""

import json
import stat
from pathlib import Path
from typing import Any

LARGEST_JSON = 64 << 20
LONGEST_LINE = 1 << 20


def read_json(file: Path) -> tuple[Any, str]:
    """(value, "") or (None, what is wrong with the file); (None, "") where there is no such file."""
    data, problem = read_bytes(file, LARGEST_JSON)
    if data is None:
        return None, problem
    try:
        return json.loads(data.decode("utf-8")), ""
    except UnicodeDecodeError:
        return None, f"{file.name} is not UTF-8 text"
    except RecursionError:
        return None, f"{file.name} is nested too deeply"
    except ValueError as error:
        return None, f"{file.name} is not JSON ({error})" if data.strip() else f"{file.name} is empty"


def read_object(file: Path) -> tuple[dict[str, Any], str]:
    """The JSON object of a file; ({}, what is wrong) where there is none."""
    value, problem = read_json(file)
    if value is None or isinstance(value, dict):
        return value or {}, problem
    return {}, f"{file.name} holds a {type(value).__name__}, not an object"


def read_lines(file: Path) -> tuple[list[dict[str, Any]], str]:
    """The whole objects of a JSON-lines file, and how many lines are none (a half-written last line among them)."""
    if not _regular(file):
        return [], _missing(file)
    found, bad = [], 0
    try:
        with file.open("rb") as lines:
            while line := lines.readline(LONGEST_LINE):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                if isinstance(value, dict):
                    found.append(value)
                else:
                    bad += 1
    except OSError as error:
        return found, f"{file.name} cannot be read: {error.strerror or error}"
    return found, f"{file.name}: {bad} {'line is' if bad == 1 else 'lines are'} damaged and left out" if bad else ""


def read_bytes(file: Path, at_most: int) -> tuple[bytes | None, str]:
    """The bytes of an ordinary file of at most so many; (None, why not)."""
    if not _regular(file):
        return None, _missing(file)
    try:
        if file.stat().st_size > at_most:
            return None, f"{file.name} is too large to be read here ({file.stat().st_size} bytes)"
        return file.read_bytes(), ""
    except OSError as error:
        return None, f"{file.name} cannot be read: {error.strerror or error}"


def read_text(file: Path, at_most: int = 1 << 16) -> str:
    """The beginning of a text file, bytes that are no UTF-8 replaced; "" where there is none."""
    if not _regular(file):
        return ""
    try:
        with file.open("rb") as stream:
            data = stream.read(at_most + 1)
    except OSError:
        return ""
    text = data[:at_most].decode("utf-8", errors="replace")
    return text + "\n\N{HORIZONTAL ELLIPSIS}" if len(data) > at_most else text


def listed(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def is_folder(path: Path) -> bool:
    """Whether it is a folder; a path that cannot be looked at is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _regular(file: Path) -> bool:
    """Not a pipe, socket or device, from which reading would wait or never end."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return False


def _missing(file: Path) -> str:
    try:
        mode = file.lstat().st_mode
    except OSError:
        return ""
    return f"{file.name} is {'a folder' if stat.S_ISDIR(mode) else 'no ordinary file'}"

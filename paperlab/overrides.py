"""Text of the command line as values of the types that stand in a config, and back.

    --config.optim.lr=3e-4                               number
    --config.optim.freeze='embedding$,blocks/(q|k)/'     texts; commas inside brackets stay
    --config.mesh.rules='["embedding$=tensor,fsdp"]'     texts as a Python or JSON list, commas and all

`str(value)` of a value reads back as that value.
"""

import ast
import math
import warnings
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ml_collections import ConfigDict

from paperlab.errors import ConfigError

TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
OPENING, CLOSING = "([{", ")]}"


def override(config: ConfigDict, path: str, text: str) -> None:
    """Sets the field at a dotted path from text, by the type of the value that stands there.

    Raises:
      ConfigError: unknown field (names the nearest) or text that is no value of that type.
    """
    section, name = _locate(config, path)
    section[name] = parse_value(section[name], text, path)


def field(config: ConfigDict, path: str) -> Any:
    """The value at a dotted path. Raises ConfigError where there is none."""
    section, name = _locate(config, path)
    return section[name]


def flatten(config: ConfigDict | Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted path and value, in the order written."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nearest_field(config: ConfigDict, path: str) -> str:
    """The field that somebody who wrote `path` may have meant: one of that name, else the most similar; or ""."""
    known = [name for name, _ in flatten(config)]
    leaf = path.rsplit(".", 1)[-1]
    same = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    near = get_close_matches(path[:200], same or known, n=1, cutoff=0.6) or same
    return near[0] if near else ""


def _locate(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    *parents, name = path.split(".")
    section = config
    for parent in parents:
        if not isinstance(section, ConfigDict) or parent not in section:
            _unknown(config, path)
        section = section[parent]
    if not isinstance(section, ConfigDict) or name not in section:
        _unknown(config, path)
    if isinstance(section[name], ConfigDict):
        inside = [f"config.{path}.{key}" for key in section[name]]
        example = f"set one of its fields: {', '.join(inside[:4])}" if inside else "it has no fields"
        raise ConfigError(f"config.{path} is a section; {example}{' ...' * (len(inside) > 4)}")
    return section, name


def _unknown(config: ConfigDict, path: str) -> None:
    near = nearest_field(config, path)
    hint = f"did you mean config.{near}?" if near else "--show prints every field"
    raise ConfigError(f"there is no field config.{path}; {hint}")


def parse_value(old: Any, text: str, path: str) -> Any:
    """`text` as a value of the type of `old` (None: the narrowest type that reads it).

    Raises:
      ConfigError: it is no value of that type.
    """
    if isinstance(old, bool):
        if text.lower() in TRUE:
            return True
        if text.lower() in FALSE:
            return False
        raise ConfigError(f"config.{path}={text}: say true or false")
    if isinstance(old, int):
        return _whole_number(text, path)
    if isinstance(old, float):
        return _number(text, path)
    if isinstance(old, tuple | list):
        return tuple(parse_value(old[0] if old else "", part, path) for part in _parts(text, path))
    if old is None:
        if text.lower() in ("none", ""):
            return None
        for read in (_whole_number, _number):
            try:
                return read(text, path)
            except ConfigError:
                continue
    return text


def _whole_number(text: str, path: str) -> int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
        if number != math.floor(number):
            raise ValueError
        return int(number)
    except (ValueError, OverflowError):
        raise ConfigError(f"config.{path}={text}: not a whole number") from None


def _number(text: str, path: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"config.{path}={text}: not a number") from None
    if not math.isfinite(number):
        raise ConfigError(f"config.{path}={text}: must be a finite number")
    return number


def _parts(text: str, path: str) -> list[str]:
    """The items of a list: of a Python or JSON literal, else what stands between commas outside brackets."""
    text = text.strip()
    if text[:1] in ("[", "(") and text[1:2] in ("'", '"', "]", ")"):
        literal = _literal(text)
        if literal is None:
            raise ConfigError(f"config.{path}={text}: not a list; say 'one,two' or '[\"one\", \"two\"]'")
        return literal
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in OPENING) - (c in CLOSING)
        if c == "," and depth <= 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _literal(text: str) -> list[str] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a regular expression
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    items = list(value) if isinstance(value, tuple | list) else [value]
    return items if all(isinstance(item, str) for item in items) else None

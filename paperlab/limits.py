"""What the fields of a config may be, said beside their defaults.

    DEFAULTS = {"depth": 4, "dropout": 0.0, "remat": "none"}
    LIMITS = {"depth": at_least(1), "dropout": share(below=True), "remat": one_of("none", "full", "dots")}

A room's module says its `LIMITS` so, `hold` keeps them. Whatever they say, numbers are finite, whole numbers fit in
int32 and texts hold no control characters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from paperlab.errors import ConfigError

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Limit:
    """Numbers from `low` to `high`, or the single values `also`; with `choices`, one of these texts."""

    low: float = -math.inf
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False
    also: tuple = ()
    choices: tuple[str, ...] = ()
    note: str = ""

    def allows(self, value: Any) -> bool:
        """Whether a value lies within."""
        if self.choices:
            return value in self.choices
        above = value > self.low if self.without_low else value >= self.low
        below = value < self.high if self.without_high else value <= self.high
        return value in self.also or (above and below)

    def wish(self, value: Any) -> str:
        """What to say of a value that does not: "must be at least 1 (...)"."""
        note = f" ({self.note})" if self.note else ""
        if self.choices:
            return f"{did_you_mean(str(value), self.choices)}{note}"
        if math.isinf(self.high):
            words = f"{'above' if self.without_low else 'at least'} {self.low:g}"
        elif math.isinf(self.low):
            words = f"{'below' if self.without_high else 'at most'} {self.high:g}"
        else:
            start = f"{'above' if self.without_low else 'from'} {_short(self.low)}"
            words = f"{start} to {'below ' * self.without_high}{_short(self.high)}"
        return f"must be {' or '.join([*map(str, self.also), words])}{note}"


def at_least(low: float, note: str = "", *, also: tuple = ()) -> Limit:
    """Numbers from `low` on."""
    return Limit(low=low, note=note, also=also)


def above(low: float, note: str = "") -> Limit:
    """Numbers greater than `low`."""
    return Limit(low=low, without_low=True, note=note)


def between(low: float, high: float, note: str = "") -> Limit:
    """Numbers from `low` to `high`, both included."""
    return Limit(low=low, high=high, note=note)


def share(note: str = "", *, below: bool = False) -> Limit:
    """Numbers from 0 to 1; with `below`, without 1."""
    return Limit(low=0, high=1, without_high=below, note=note)


def one_of(*choices: str, note: str = "") -> Limit:
    """Some texts."""
    return Limit(choices=choices, note=note)


SEED = between(0, 2**32 - 1)


def hold(values: Mapping[str, Any], limits: Mapping[str, Limit], where: str) -> None:
    """Checks flat values by the limits of their names.

    Args:
      values: {dotted path: value}.
      limits: {path, or pattern with `*`: limit}.
      where: what stands before the path in messages, such as "config.model.".

    Raises:
      ConfigError: names the field, its value and what it may be.
    """
    for path, value in values.items():
        limit = limits.get(path) or next((one for name, one in limits.items() if fnmatchcase(path, name)), None)
        told = wrong(value, limit)
        if told:
            raise ConfigError(f"{where}{path}={_shown(value)}: {told}")


def wrong(value: Any, limit: Limit | None = None) -> str:
    """What is wrong with a value, "" where nothing is."""
    if isinstance(value, str) and any(ord(c) < 32 or ord(c) == 127 for c in value):
        return "must not hold control characters"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if limit is not None and not limit.allows(value):
        return limit.wish(value)
    largest = LARGEST if limit is None or math.isinf(limit.high) else limit.high
    if isinstance(value, int) and not -LARGEST <= value <= largest:
        return f"must be at most {largest:.0f}"
    if isinstance(value, tuple | list):
        return next((told for item in value if (told := wrong(item))), "")
    return ""


def did_you_mean(word: str, known: Any, prefix: str = "") -> str:
    """The nearest of the known words, or all of them."""
    near = get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"


def _short(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"

"""Copy, reverse, add: a row of digits in, a row of digits out, and an end.

    copy       3 1 4            -> 3 1 4
    reverse    3 1 4            -> 4 1 3
    addition   5 2 + 7 1        -> 2 4           the lowest digit comes first: 25 + 17 = 42

Symbol 0 is padding, 1 ends a row, digit d is d + 2, the sign of addition comes after the digits. Source: tensor2tensor's
data_generators/algorithmic.py, whose distributions are kept: lengths are drawn evenly, and of two numbers the first takes up to
half of the room, the second up to the rest.
"""

import numpy as np

from paperlab.data.synthetic import addressed
from paperlab.errors import ConfigError

PROBLEMS = ("copy", "reverse", "addition")
PADDING, END, FIRST = 0, 1, 2


def vocab_size(base: int) -> int:
    """Symbols: padding, end, digits, and the sign."""
    return FIRST + base + 1


def examples(
    indices_B: np.ndarray, *, seed: int = 0, problem: str = "copy", base: int = 10, shortest: int = 1, longest: int = 12
) -> dict[str, np.ndarray]:
    """The examples `indices_B` as a batch of symbols [B, longest + 1], padded.

    Args:
      indices_B: example numbers.
      seed: one seed is one endless set of examples.
      problem: one of PROBLEMS.
      base: number of digits.
      shortest, longest: digits of a row, drawn evenly between; of addition the second alone counts, for both numbers and the sign.

    Returns:
      source and targets, with their ends; inputs, the targets shifted right; source_valid and weights, 1 where symbols are.

    Raises:
      ConfigError: an unknown problem, lengths that cannot be.
    """
    check(problem, base, shortest, longest)
    streams = addressed.streams(indices_B, seed)
    make = _addition if problem == "addition" else _digits
    source, target = make(streams, problem, base, shortest, longest)
    ends = [_ended(row, longest + 1) for row in (source, target)]
    shifted = np.pad(ends[1], ((0, 0), (1, 0)))[:, :-1]
    return {
        "source": ends[0],
        "inputs": shifted,
        "targets": ends[1],
        "source_valid": ends[0] != PADDING,
        "weights": (ends[1] != PADDING).astype(np.float32),
    }


def check(problem: str, base: int, shortest: int, longest: int) -> None:
    """Raises ConfigError for options of `examples` out of range."""
    if problem not in PROBLEMS:
        raise ConfigError(f"config.task.problem={problem!r}: choose one of {', '.join(PROBLEMS)}")
    if base < 2:
        raise ConfigError(f"config.task.base={base}: must be at least 2 digits")
    if not 1 <= shortest <= longest:
        raise ConfigError(
            f"config.task.shortest={shortest}, config.task.longest={longest}: must be 1 <= shortest <= longest"
        )
    if problem == "addition" and longest < 3:
        raise ConfigError(f"config.task.longest={longest}: two numbers and a sign need at least 3")


def _digits(streams, problem, base, shortest, longest):
    """Rows of 0-based digits, -1 after their end."""
    count = shortest + addressed.integers(streams, 1, longest - shortest + 1, 0)
    places = np.arange(longest)
    there = places < count
    source = np.where(there, addressed.integers(streams, longest, base, 1), -1)
    if problem == "copy":
        return source, source
    turned = np.take_along_axis(source, np.maximum(count - 1 - places, 0), 1)
    return source, np.where(there, turned, -1)


def _addition(streams, problem, base, shortest, longest):
    del problem, shortest
    first = 1 + addressed.integers(streams, 1, longest // 2, 0)
    second = 1 + (addressed.uniform(streams, 1, 1) * (longest - first - 1)).astype(np.int64)
    a, b = (_number(streams, n, longest, base, lane) for n, lane in ((first, 2), (second, 3)))
    places = np.arange(longest)
    source = np.where(places < first, a, -1)
    source = np.where(places == first, base, source)
    moved = np.take_along_axis(b, np.clip(places - first - 1, 0, longest - 1), 1)
    source = np.where((places > first) & (places < first + 1 + second), moved, source)
    total, carry = np.zeros_like(a), np.zeros(len(a), a.dtype)
    for i in range(longest):
        sum_ = a[:, i] + b[:, i] + carry
        total[:, i], carry = sum_ % base, sum_ // base
    size = np.maximum((total > 0) * (places + 1), 0).max(1, keepdims=True).clip(1)
    return source, np.where(places < size, total, -1)


def _number(streams, count_Bx1, longest, base, lane):
    """Digits, lowest first, the highest of several not 0; 0 beyond."""
    places = np.arange(longest)
    digits = addressed.integers(streams, longest, base, lane).astype(np.int64)
    highest = 1 + addressed.integers(streams, 1, base - 1, lane + 2)
    digits = np.where((places == count_Bx1 - 1) & (count_Bx1 > 1), highest, digits)
    return np.where(places < count_Bx1, digits, 0)


def _ended(rows: np.ndarray, width: int) -> np.ndarray:
    """Symbols of 0-based digits, with an end where -1 begins."""
    count = (rows >= 0).sum(1, keepdims=True)
    symbols = np.pad(np.where(rows >= 0, rows + FIRST, PADDING), ((0, 0), (0, width - rows.shape[1])))
    return np.where(np.arange(width) == count, END, symbols).astype(np.int32)

"""Words over a finite group: after every letter, what is the product so far?

    p_t = p_{t-1} x_t,   p_0 = 1                tokens x_1 .. x_T, targets p_1 .. p_T

The word problem of a group is what "state tracking" means: Z2 is parity, which no linear recurrence with positive decays can
follow; S5 is complete for NC^1 (Barrington 1989), out of reach of any fixed-depth parallel model unless TC^0 = NC^1.

    Z<n>  cyclic, order n        S<n>  all permutations of n things, n!        A<n>  the even ones, n!/2        D<n>  symmetries of
    an n-gon, 2n

Elements are numbers, 0 the identity, k of Z<n> its k-th power; permutations stand in lexicographic order. Source of the task:
The Illusion of State in State-Space Models (arXiv 2404.08819); parity: ParaRNN (arXiv 2510.21450), Table 6.
"""

import itertools
import math
import re
from functools import cache

import numpy as np

from paperlab.data.synthetic import addressed
from paperlab.errors import ConfigError

ALPHABETS = ("all", "generators")
LARGEST = 1024  # elements: the table of products has the square of it
_NAME = re.compile(r"([ZSAD])([1-9]\d{0,3})")


def examples(
    indices_B: np.ndarray, *, seed: int = 0, group: str = "Z2", alphabet: str = "all", sequence_length: int = 32
) -> dict[str, np.ndarray]:
    """The examples `indices_B` as a batch: tokens, targets, weights, segment_ids, positions, bytes [B, T].

    Args:
      indices_B: example numbers.
      seed: one seed is one endless set of words.
      group: a name such as "Z2", "S3", "S5", "A5" or "D4".
      alphabet: letters are drawn evenly from "all" elements, or from "generators" alone (see `generators`).
      sequence_length: T.

    Returns:
      int32 and float32 arrays; every position is asked (weights 1).
    """
    table = multiplication(group)
    letters = np.arange(len(table)) if alphabet == "all" else np.asarray(generators(group))
    tokens = letters[addressed.integers(addressed.streams(indices_B, seed), sequence_length, len(letters), 0)]
    products = np.empty_like(tokens)
    so_far = np.zeros(len(tokens), np.int64)
    for t in range(sequence_length):
        products[:, t] = so_far = table[so_far, tokens[:, t]]
    return addressed.packed(tokens, products, np.ones(tokens.shape, bool))


def order(group: str) -> int:
    """The number of elements, without making any. Raises ConfigError for a group that there is not."""
    kind, n = _parsed(group)
    return {"Z": n, "D": 2 * n, "S": math.factorial(n), "A": math.factorial(n) // 2}[kind]


@cache
def multiplication(group: str) -> np.ndarray:
    """The table of products, int64 [order, order]: entry [a, b] is the number of a b (for permutations: first b, then a)."""
    kind, n = _parsed(group)
    if kind == "Z":
        return np.add.outer(np.arange(n), np.arange(n)) % n
    elements = _permutations(kind, n)
    numbers = {element: i for i, element in enumerate(elements)}
    array = np.asarray(elements)
    return np.array([[numbers[tuple(a[b])] for b in array] for a in array])


@cache
def generators(group: str) -> tuple[int, ...]:
    """Numbers of a few elements that make all others, the identity among them so that a letter may also change nothing."""
    kind, n = _parsed(group)
    if kind == "Z":
        return (0, 1)
    elements = list(_permutations(kind, n))
    turn = (*range(1, n), 0)
    if kind == "D":
        chosen = {turn, tuple(-i % n for i in range(n))}
    elif kind == "S":
        chosen = {turn, (1, 0, *range(2, n))}
    else:  # all three-cycles (0 1 k) make the even permutations
        chosen = {(1, k, *(0 if i == k else i for i in range(2, n))) for k in range(2, n)}
    return tuple(sorted({0, *(elements.index(one) for one in chosen)}))


def _permutations(kind: str, n: int) -> tuple[tuple[int, ...], ...]:
    if kind == "D":
        return tuple(sorted({tuple((sign * i + by) % n for i in range(n)) for sign in (1, -1) for by in range(n)}))
    everything = itertools.permutations(range(n))
    return tuple(p for p in everything if kind == "S" or _is_even(p))


def _is_even(permutation: tuple[int, ...]) -> bool:
    pairs = itertools.combinations(permutation, 2)
    return sum(a > b for a, b in pairs) % 2 == 0


def _parsed(group: str) -> tuple[str, int]:
    match = _NAME.fullmatch(group)
    if match is None:
        raise ConfigError(f"config.task.group={group!r}: say Z<n>, S<n>, A<n> or D<n>, such as Z2 (parity), S3 or S5")
    kind, n = match[1], int(match[2])
    least = 3 if kind in "AD" else 2
    if n < least:
        raise ConfigError(f"config.task.group={group!r}: too few elements; {kind}{least} is the smallest")
    most = {"Z": LARGEST, "D": LARGEST // 2, "S": 6, "A": 6}[kind]
    if n > most:
        raise ConfigError(f"config.task.group={group!r}: too many elements; {kind}{most} is the largest")
    return kind, n


def check(group: str, alphabet: str = "all") -> None:
    """Raises ConfigError for a group or an alphabet that there is not."""
    _parsed(group)
    if alphabet not in ALPHABETS:
        raise ConfigError(f"config.task.alphabet={alphabet!r}: choose one of {', '.join(ALPHABETS)}")

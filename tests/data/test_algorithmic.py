"""Copy, reverse, addition and pointers: known answers, and the distributions that the paper's code draws from."""

import numpy as np
import pytest

from paperlab.data.synthetic import algorithmic, pointer_chasing
from paperlab.errors import ConfigError


def digits(row: np.ndarray) -> list[int]:
    """The digits of a row up to its end."""
    return [int(symbol) - 2 for symbol in row[: list(row).index(algorithmic.END)]]


def number(lowest_first: list[int], base: int) -> int:
    """What digits say, the lowest first."""
    return sum(digit * base**i for i, digit in enumerate(lowest_first))


@pytest.mark.parametrize("problem", ["copy", "reverse"])
def test_digits_come_back(problem):
    batch = algorithmic.examples(np.arange(300), problem=problem, shortest=2, longest=9)
    lengths = set()
    for source, target, weights in zip(batch["source"], batch["targets"], batch["weights"], strict=True):
        given, wanted = digits(source), digits(target)
        lengths.add(len(given))
        assert wanted == (given if problem == "copy" else given[::-1])
        assert weights.sum() == len(wanted) + 1
    assert lengths == set(range(2, 10))
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert not batch["inputs"][:, 0].any()


@pytest.mark.parametrize("base", [2, 10])
def test_sums_are_right(base):
    batch = algorithmic.examples(np.arange(400), problem="addition", base=base, longest=20)
    firsts, totals = set(), set()
    for source, target in zip(batch["source"], batch["targets"], strict=True):
        given = digits(source)
        sign = given.index(base)
        a, b = given[:sign], given[sign + 1 :]
        assert number(a, base) + number(b, base) == number(digits(target), base)
        assert all(len(x) == 1 or x[-1] > 0 for x in (a, b))
        firsts.add(len(a))
        totals.add(len(given))
    assert firsts == set(range(1, 11))
    assert max(totals) == 20


def test_pointers_are_followed():
    batch = pointer_chasing.examples(np.arange(100), nodes=7, fewest=2, most=5, say_hops=True)
    for tokens, label, hops in zip(batch["tokens"], batch["labels"], batch["hops"], strict=True):
        leads = {int(a) - 1: int(b) - 8 for a, b in tokens[:-1]}
        assert sorted(leads) == sorted(leads.values()) == list(range(7))
        at = int(tokens[-1, 1]) - 8
        for _ in range(hops):
            at = leads[at]
        assert at == label
        assert tokens[-1, 0] == 15 + hops
    assert set(batch["hops"].tolist()) == {2, 3, 4, 5}
    assert batch["tokens"].max() < pointer_chasing.vocab_size(7, 5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda i: algorithmic.examples(i, problem="sort"), "choose one of"),
        (lambda i: algorithmic.examples(i, base=1), "at least 2"),
        (lambda i: algorithmic.examples(i, shortest=5, longest=4), "shortest"),
        (lambda i: algorithmic.examples(i, problem="addition", longest=2), "at least 3"),
        (lambda i: pointer_chasing.examples(i, nodes=1), "at least 2"),
        (lambda i: pointer_chasing.examples(i, fewest=3, most=2), "hops"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make(np.arange(1))

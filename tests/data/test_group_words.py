"""Words over finite groups: the tables are those of groups, and the targets are running products."""

import math

import numpy as np
import pytest

from paperlab.data.synthetic import addressed, group_words
from paperlab.errors import ConfigError

GROUPS = {
    "Z2": 2,
    "Z7": 7,
    "S2": 2,
    "S3": 6,
    "S4": 24,
    "S5": 120,
    "A3": 3,
    "A4": 12,
    "A5": 60,
    "D3": 6,
    "D4": 8,
    "D5": 10,
}


@pytest.mark.parametrize("group", GROUPS)
def test_a_table_of_products_is_a_group(group):
    table, n = group_words.multiplication(group), GROUPS[group]
    assert table.shape == (n, n)
    assert group_words.order(group) == n
    np.testing.assert_array_equal(table[0], np.arange(n))
    np.testing.assert_array_equal(table[:, 0], np.arange(n))
    for lines in (table, table.T):
        np.testing.assert_array_equal(np.sort(lines, 1), np.broadcast_to(np.arange(n), (n, n)))
    np.testing.assert_array_equal(table[table], table[:, table])  # (a b) c = a (b c)


@pytest.mark.parametrize("group", GROUPS)
def test_generators_make_the_whole_group(group):
    table, letters = group_words.multiplication(group), group_words.generators(group)
    made = {0}
    for _ in range(len(table)):
        made |= {int(table[a, b]) for a in made for b in letters}
    assert 0 in letters
    assert len(made) == len(table)


def test_which_groups_commute_and_which_are_hard():
    commute = {name: (group_words.multiplication(name) == group_words.multiplication(name).T).all() for name in GROUPS}
    assert {name for name, yes in commute.items() if yes} == {"Z2", "Z7", "S2", "A3"}
    table = group_words.multiplication("A5")  # its commutators are all of it: not solvable
    inverse = (table == 0).argmax(1)
    a, b = np.meshgrid(np.arange(60), np.arange(60))
    assert len(np.unique(table[table[a, b], table[inverse[a], inverse[b]]])) == 60


def test_parity_is_the_running_sum_modulo_two():
    batch = group_words.examples(np.arange(64), group="Z2", sequence_length=32)
    np.testing.assert_array_equal(batch["targets"], np.cumsum(batch["tokens"], 1) % 2)
    assert (batch["weights"] == 1).all()
    assert 0.45 < batch["tokens"].mean() < 0.55


def test_targets_are_products_of_permutations():
    import itertools

    elements = list(itertools.permutations(range(4)))
    batch = group_words.examples(np.arange(5), group="S4", sequence_length=9, seed=3)
    for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
        so_far = tuple(range(4))
        for token, target in zip(tokens, targets, strict=True):
            so_far = tuple(so_far[i] for i in elements[token])
            assert elements[target] == so_far


def test_letters_come_from_the_alphabet_and_products_spread_over_the_group():
    batch = group_words.examples(np.arange(4000), group="S3", alphabet="generators", sequence_length=24)
    assert set(np.unique(batch["tokens"])) == set(group_words.generators("S3"))
    shares = np.bincount(batch["targets"][:, -1], minlength=6) / 4000
    np.testing.assert_allclose(shares, 1 / 6, atol=0.03)


def test_an_example_depends_on_its_index_and_seed_alone():
    options = {"group": "S5", "sequence_length": 12}
    whole = group_words.examples(np.arange(20), seed=5, **options)
    for i in (0, 7, 19):
        alone = group_words.examples(np.array([i]), seed=5, **options)
        for key in whole:
            np.testing.assert_array_equal(alone[key][0], whole[key][i])
    assert (group_words.examples(np.arange(20), seed=6, **options)["tokens"] != whole["tokens"]).any(1).all()
    train = addressed.batches(group_words.examples, "train", batch_size=4, **options)
    validation = addressed.batches(group_words.examples, "validation", batch_size=4, validation_examples=10, **options)
    assert len(validation) == math.ceil(10 / 4)
    assert (validation[0]["tokens"] != train[0]["tokens"]).any(1).all()


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("Q8", "say Z<n>, S<n>, A<n> or D<n>"),
        ("Z0", "say Z<n>"),
        ("Z1", "Z2 is the smallest"),
        ("A2", "A3 is the smallest"),
        ("S7", "S6 is the largest"),
        ("Z5000", "Z1024 is the largest"),
    ],
)
def test_a_group_that_there_is_not(group, message):
    with pytest.raises(ConfigError, match=message):
        group_words.check(group)

"""Keeping the n-th symbol and k-hop induction: the answers are what the definitions say."""

import numpy as np
import pytest

from paperlab.data.synthetic import k_hop, keep_nth
from paperlab.errors import ConfigError


def hop(tokens, i, hops):
    """The definition, one place at a time: the symbol that k hops from place i lead to, None where they lead nowhere."""
    for _ in range(hops):
        earlier = [j for j in range(1, i + 1) if tokens[j - 1] == tokens[i]]
        if not earlier:
            return None
        i = max(earlier)
    return tokens[i]


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_hops_lead_where_the_definition_says(hops):
    batch = k_hop.examples(np.arange(40), vocab_size=4, hops=hops, asked="all", sequence_length=20)
    expected = [[hop(row, i, hops) for i in range(20)] for row in batch["tokens"]]
    asked = np.array([[answer is not None for answer in row] for row in expected])
    np.testing.assert_array_equal(batch["weights"], asked)
    np.testing.assert_array_equal(batch["targets"][asked], [a for row in expected for a in row if a is not None])
    assert 0.3 < asked.mean() < 1
    last = k_hop.examples(np.arange(40), vocab_size=4, hops=hops, sequence_length=20)
    assert (last["weights"][:, :-1] == 0).all()
    np.testing.assert_array_equal(last["weights"][:, -1], batch["weights"][:, -1])
    np.testing.assert_array_equal(last["targets"][:, -1], batch["targets"][:, -1])


def test_answers_of_hops_are_spread_over_the_symbols():
    batch = k_hop.examples(np.arange(5000), vocab_size=5, hops=2, sequence_length=60)
    counts = np.bincount(batch["targets"][:, -1][batch["weights"][:, -1] > 0], minlength=5)
    np.testing.assert_allclose(counts / counts.sum(), 0.2, atol=0.03)
    # a hop to the current place stays there (1/5); any other lands on y != x, whose last occurrence x follows: 1/5 + 4/5 1/4
    np.testing.assert_allclose((batch["targets"][:, -1] == batch["tokens"][:, -1]).mean(), 0.52, atol=0.02)


@pytest.mark.parametrize("keep", [1, 5, 12])
def test_the_symbol_at_place_n_is_kept(keep):
    options = {"vocab_size": 9, "keep": keep, "sequence_length": 12}
    last = keep_nth.examples(np.arange(30), **options)
    np.testing.assert_array_equal(last["targets"][:, -1], last["tokens"][:, keep - 1])
    np.testing.assert_array_equal(last["weights"].sum(1), 1)
    assert (last["weights"][:, -1] == 1).all()
    every = keep_nth.examples(np.arange(30), asked="all", **options)
    np.testing.assert_array_equal(every["weights"].sum(1), 13 - keep)
    for row, kept in zip(every["targets"], last["targets"][:, -1], strict=True):
        np.testing.assert_array_equal(row, np.where(np.arange(12) >= keep - 1, kept, 0))


@pytest.mark.parametrize("make", [k_hop.examples, keep_nth.examples])
def test_an_example_depends_on_its_index_and_seed_alone(make):
    whole = make(np.arange(12), seed=2, sequence_length=16)
    alone = make(np.array([7]), seed=2, sequence_length=16)
    for key in whole:
        np.testing.assert_array_equal(alone[key][0], whole[key][7])
    assert (make(np.arange(12), seed=3, sequence_length=16)["tokens"] != whole["tokens"]).any(1).all()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (keep_nth.examples, {"keep": 9, "sequence_length": 8}, "config.task.keep=9: must be from 1 to"),
        (keep_nth.examples, {"keep": 0}, "config.task.keep=0"),
        (keep_nth.examples, {"asked": "first"}, "config.task.asked='first'"),
        (k_hop.examples, {"hops": 0}, "config.task.hops=0"),
        (k_hop.examples, {"asked": "first"}, "config.task.asked='first'"),
    ],
)
def test_what_cannot_be_asked_is_refused(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(np.arange(2), **options)

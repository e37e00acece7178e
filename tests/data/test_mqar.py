"""Multi-query associative recall: solvable, index-addressable, and spread as the paper says."""

import numpy as np
import pytest

from paperlab.data.synthetic import mqar
from paperlab.errors import ConfigError

TASK = {"vocab_size": 40, "sequence_length": 48, "num_pairs": 6}


def solve(tokens: np.ndarray, pairs: int) -> np.ndarray:
    """Looks every token up among the pairs: what a perfect memory answers (-1: not a key)."""
    memory = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
    return np.array([memory.get(t, -1) for t in tokens])


@pytest.mark.parametrize("filler", [True, False])
def test_every_key_is_asked_once_and_a_memory_answers(filler):
    batch = mqar.examples(np.arange(200), random_filler=filler, **TASK)
    asked = batch["weights"] > 0
    assert (asked.sum(1) == 6).all()
    assert not asked[:, :12].any()
    for tokens, targets, at in zip(batch["tokens"], batch["targets"], asked, strict=True):
        np.testing.assert_array_equal(solve(tokens, 6)[at], targets[at])
        assert sorted(tokens[at]) == sorted(tokens[:12:2])
        assert len(set(tokens[:12:2])) == len(set(tokens[1:12:2])) == 6
    keys, values = batch["tokens"][:, :12:2], batch["tokens"][:, 1:12:2]
    assert 1 <= keys.min() <= keys.max() < 20 <= values.min() <= values.max() < 40
    assert (batch["targets"][~asked] == 0).all()
    if not filler:
        assert (batch["tokens"][:, 12:][~asked[:, 12:]] == 0).all()


def test_an_example_depends_on_its_index_and_seed_alone():
    whole = mqar.examples(np.arange(20), seed=5, min_pairs=2, **TASK)
    for i in (0, 7, 19):
        alone = mqar.examples(np.array([i]), seed=5, min_pairs=2, **TASK)
        for key in whole:
            np.testing.assert_array_equal(alone[key][0], whole[key][i])
    assert (mqar.examples(np.arange(20), seed=6, min_pairs=2, **TASK)["tokens"] != whole["tokens"]).any(1).all()
    assert len({row.tobytes() for row in whole["tokens"]}) == 20


def test_pairs_vary_between_the_bounds():
    counts = mqar.examples(np.arange(300), min_pairs=3, **TASK)["weights"].sum(1)
    assert set(counts) == {3, 4, 5, 6}
    assert np.bincount(counts.astype(int))[3:].min() > 50


def test_keys_are_drawn_evenly_and_gaps_by_the_power_law():
    task = {"vocab_size": 12, "sequence_length": 24, "num_pairs": 1}
    batch = mqar.examples(np.arange(20_000), power=0.5, **task)
    keys = np.bincount(batch["tokens"][:, 0], minlength=6)[1:6] / 20_000
    np.testing.assert_allclose(keys, 1 / 5, atol=0.015)
    gaps = (np.nonzero(batch["weights"])[1] - 2) // 2
    odds = np.arange(1, 12) ** -0.5
    np.testing.assert_allclose(np.bincount(gaps, minlength=11) / 20_000, odds / odds.sum(), atol=0.015)


def test_batches_are_addressable_sliced_and_kept_apart():
    train = mqar.batches("train", batch_size=4, **TASK)
    np.testing.assert_array_equal(train[3]["tokens"], mqar.examples(np.arange(12, 16), seed=0, **TASK)["tokens"])
    parts = [mqar.batches("train", batch_size=4, process_index=p, process_count=2, **TASK)[3] for p in range(2)]
    np.testing.assert_array_equal(np.concatenate([p["tokens"] for p in parts]), train[3]["tokens"])
    validation = mqar.batches("validation", batch_size=4, validation_examples=10, **TASK)
    assert len(validation) == 3
    assert (validation[0]["tokens"] != train[0]["tokens"]).any(1).all()
    assert validation[0]["tokens"].shape == (4, 48)
    assert {v.dtype.name for v in validation[0].values()} == {"int32", "float32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_pairs": 0}, "num_pairs=0"),
        ({"min_pairs": 7}, "min_pairs=7"),
        ({"sequence_length": 22}, "sequence_length=22: 6 pairs"),
        ({"sequence_length": 49}, "sequence_length=49"),
        ({"vocab_size": 13}, "vocab_size=13: 6 different keys"),
        ({"power": 0}, "power=0"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"process_count": 3}, "data.batch_size=4: give a positive multiple of 3"),
    ],
)
def test_impossible_tasks_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        mqar.batches("train", **{"batch_size": 4, **TASK, **change})

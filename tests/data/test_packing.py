"""Laws of concatenate-and-cut: nothing lost, nothing twice, batch i a function of i alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperlab.data.packing import batches, cut, window_count
from paperlab.errors import ConfigError
from tests.data.conftest import corpus_of, stream_of

TRAIN = [bytes([i % 256]) * (7 * i % 40 + 1) for i in range(50)]
SIZES = {"sequence_length": 16, "batch_size": 6}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def one_pass(corpus, order, split="train", **sizes):
    """Batches that together are one pass over the windows."""
    sizes = sizes or SIZES
    pass_ = batches(corpus, split, order=order, **sizes)
    n = window_count(corpus.split(split), sizes["sequence_length"])
    W = -(-n // sizes["batch_size"])
    return [pass_[i] for i in range(W)], n


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=12),
    T=st.integers(1, 20),
    B=st.integers(1, 5),
    split=st.sampled_from(["train", "validation"]),
)
def test_every_byte_is_a_target_exactly_once_a_pass(documents, T, B, split):
    got, _ = one_pass(corpus_of(documents), "contiguous", split, sequence_length=T, batch_size=B)
    rows = np.stack([b["targets"] for b in got], 1).reshape(-1)  # row by row, each row in time
    weights = np.stack([b["weights"] for b in got], 1).reshape(-1)
    assert bytes(rows[weights > 0].tolist()) == b"".join(documents)
    assert sum(b["bytes"].sum() for b in got) == sum(map(len, documents)) == weights.sum()
    for b in got:
        np.testing.assert_array_equal(b["weights"] > 0, b["bytes"] > 0)


def test_a_shuffled_epoch_holds_every_window_once_and_the_next_in_another_order():
    corpus = corpus_of(TRAIN)
    n = window_count(corpus.train, 16)
    windows = batches(corpus, "train", sequence_length=16, batch_size=1, order="shuffled", seed=3)
    epochs = [[windows[e * n + i]["tokens"].tobytes() for i in range(n)] for e in range(2)]
    stream = [cut(corpus.train, np.array([g]), 16)["tokens"].tobytes() for g in range(n)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(stream)
    assert epochs[0] != epochs[1]
    assert epochs[0] != stream
    other = batches(corpus, "train", sequence_length=16, batch_size=1, order="shuffled", seed=4)
    assert [other[i]["tokens"].tobytes() for i in range(n)] != epochs[0]


@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
def test_batches_of_one_row_can_be_started_anywhere(order):
    windows = batches(corpus_of(TRAIN), "train", sequence_length=16, batch_size=1, order=order, seed=3)
    assert windows[5]["tokens"].shape == (1, 16)
    np.testing.assert_array_equal(windows[5:7][0]["tokens"], windows[5]["tokens"])


def test_windows_are_exact():
    batch = cut(stream_of([b"abc", b"de"]), np.array([0, 1, 2]), 3)
    np.testing.assert_array_equal(batch["tokens"], [[256, 97, 98], [99, 256, 100], [101, 256, 256]])
    np.testing.assert_array_equal(batch["targets"], [[97, 98, 99], [256, 100, 101], [256, 256, 256]])
    np.testing.assert_array_equal(batch["segment_ids"], [[0, 0, 0], [0, 1, 1], [1, 2, 2]])
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 2], [3, 0, 1], [2, 0, 1]])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 1], [0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(batch["bytes"], batch["weights"])
    integers = {k for k, v in batch.items() if v.dtype == np.int32}
    assert integers == {"tokens", "targets", "segment_ids", "positions"}
    assert batch["weights"].dtype == batch["bytes"].dtype == np.float32


@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_batch_i_is_a_function_of_i_alone(order, split):
    corpus = corpus_of(TRAIN)
    whole = batches(corpus, split, order=order, **SIZES)
    count = min(len(whole), 40)
    uninterrupted = [whole[i] for i in range(count)]
    resumed = batches(corpus_of(TRAIN), split, order=order, **SIZES)[count // 2 :]
    for want, got in zip(uninterrupted[count // 2 :], resumed, strict=False):
        assert_same(want, got)
    for i in reversed(range(count)):
        assert_same(whole[i], uninterrupted[i])
    for want, got in zip(uninterrupted, whole.to_iter_dataset(), strict=False):
        assert_same(want, got)


@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("processes", [2, 3])
def test_process_slices_concatenate_to_the_global_batch(order, split, processes):
    corpus = corpus_of(TRAIN)
    whole = batches(corpus, split, order=order, **SIZES)
    parts = [
        batches(corpus, split, order=order, process_index=p, process_count=processes, **SIZES) for p in range(processes)
    ]
    assert all(len(p) == len(whole) for p in parts)
    for i in (0, 1, 3):
        slices = [p[i] for p in parts]
        assert_same(whole[i], {k: np.concatenate([s[k] for s in slices]) for k in whole[i]})


@pytest.mark.parametrize("documents", [TRAIN, [b"x" * 333], [b"x" * 96], [b"x" * 7], [b"ab"] * 31])
def test_contiguous_rows_continue_and_state_is_reset_exactly_at_borders(documents):
    ds = batches(corpus_of(documents), "train", order="contiguous", **SIZES)
    got = [ds[i] for i in range(60)]
    joined = {k: np.concatenate([b[k] for b in got], axis=1) for k in got[0]}
    tokens, targets, segments = joined["tokens"], joined["targets"], joined["segment_ids"]
    follows = tokens[:, 1:] == targets[:, :-1]
    predicted = joined["weights"][:, :-1] > 0
    new_document = joined["positions"][:, 1:] == 0
    assert (follows | new_document)[predicted].all()  # the end of the stream is followed by its beginning
    np.testing.assert_array_equal(segments[:, 1:] != segments[:, :-1], new_document | ~contiguous(joined))
    assert (tokens[joined["positions"] == 0] == 256).all()
    assert segments.min() >= 0


def contiguous(joined):
    """False where padding jumps (positions there count on from the end of the stream)."""
    return np.diff(joined["positions"], axis=1) == 1


def test_a_row_of_contiguous_batches_reads_the_whole_stream_in_turn():
    corpus = corpus_of(TRAIN)
    n = window_count(corpus.train, 16)
    W = -(-n // 6)
    ds = batches(corpus, "train", order="contiguous", **SIZES)
    row = [ds[i] for i in range(6 * W)]
    targets = np.concatenate([b["targets"][0] for b in row])
    weights = np.concatenate([b["weights"][0] for b in row])
    assert bytes(targets[weights > 0].tolist()) == b"".join(TRAIN)


def test_validation_is_finite_and_covers_the_split_for_every_order():
    corpus = corpus_of([b"train"], TRAIN)
    for order in ("shuffled", "contiguous"):
        got = list(batches(corpus, "validation", order=order, **SIZES))
        assert sum(b["bytes"].sum() for b in got) == sum(map(len, TRAIN))
        assert all(b["tokens"].shape == (6, 16) for b in got)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process_count": 4}, "data.batch_size=6 does not divide over 4 processes"),
        ({"sequence_length": 0}, "data.sequence_length=0"),
        ({"batch_size": -1}, "data.batch_size=-1"),
        ({"order": "sorted"}, "data.order='sorted': choose one of shuffled, contiguous"),
        ({"process_index": 2, "process_count": 2}, "process_index=2"),
    ],
)
def test_wrong_sizes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        batches(corpus_of(TRAIN), "train", **{**SIZES, **change})


def test_unknown_split_is_named():
    with pytest.raises(ConfigError, match="'test'"):
        batches(corpus_of(TRAIN), "test", **SIZES)

"""pLSTM along a sequence: transitions that turn a state count what positive ones cannot; the arms of claim 7."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import load_experiment, resolve
from paperlab.data.synthetic import group_words
from paperlab.discovery import find
from paperlab.evidence import Laboratory
from paperlab.papers.plstm import tracking
from paperlab.recurrence.line import Gates, line_memory

T = 64


def followed(letters: np.ndarray, turns: np.ndarray, start: np.ndarray) -> np.ndarray:
    """What is read at every step [T, JT] of a state that starts at `start` and is turned by turns[letter] at every step.

    The first step writes, as a source of the input could say; all marks read one entry of the state each.
    """
    J = len(start)
    first = (np.arange(len(letters)) == 0)[:, None, None, None]
    source = np.where(first, (turns[letters[0]] @ start)[None, :, None, None], 0.0)
    mark = np.broadcast_to(np.eye(J)[:, None], (len(letters), J, 1, J))
    one = np.ones((len(letters), 1, 1), np.float32)
    gates = Gates(*(jnp.asarray(x, jnp.float32) for x in (source, turns[letters], mark)))
    out, last = line_memory(one, one, one, gates, scale=1.0)
    return np.concatenate([np.asarray(out)[1:, 0], np.asarray(last)[:, 0]])


def test_minus_one_counts_modulo_two():
    letters = np.random.default_rng(0).integers(0, 2, T)
    read = followed(letters, np.array([1.0, -1.0])[:, None, None], np.ones(1))[:, 0]
    np.testing.assert_array_equal(read < 0, np.cumsum(letters) % 2)


def test_reflections_and_rotations_of_a_plane_follow_s3():
    """The corners of a triangle, permuted: products of the group are products of the turns, the later on the left."""
    corners = np.array([[1, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]).T
    elements = group_words._permutations("S", 3)
    turns = np.stack([corners[:, list(p)] @ np.linalg.pinv(corners) for p in elements])
    np.testing.assert_allclose(turns @ turns.swapaxes(1, 2), np.broadcast_to(np.eye(2), turns.shape), atol=1e-12)
    letters = np.random.default_rng(1).integers(0, 6, T)
    start = corners @ [1.0, 0.3, 0.0]
    read = followed(letters, turns, start)
    table, product = group_words.multiplication("S3"), 0
    for t, letter in enumerate(letters):
        product = table[letter, product]
        np.testing.assert_allclose(read[t], turns[product] @ start, atol=1e-4)


def test_positive_numbers_forget_or_keep_the_first_letter_but_never_its_parity():
    """The state after a word is monotone in what the first step wrote: no sign ever turns."""
    letters = np.random.default_rng(2).integers(0, 2, T)
    read = followed(letters, np.array([0.99, 0.9])[:, None, None], np.ones(1))
    assert (read > 0).all()


@pytest.mark.parametrize("group", ["", "_s3"])
def test_the_arms_of_the_claim_differ_in_the_transition_alone(group):
    turning, positive = (
        resolve(load_experiment(f"{tracking.EXPERIMENT}:tracking{group}{arm}")) for arm in ("", "_positive")
    )
    changed = {name for name in turning.mixers.plstm if turning.mixers.plstm[name] != positive.mixers.plstm[name]}
    assert changed == {"JT", "eigenvalues", "transition_bias"}
    for section in ("model", "task", "data", "optim"):
        assert turning[section] == positive[section]


def test_the_claim_reads_every_seed_at_the_last_position(monkeypatch, tmp_path):
    def shrunk(name):
        config = load_experiment(name)
        config.model.update(width=8, heads=2)
        config.data.update(sequence_length=4, batch_size=8)
        config.task.validation_examples = 16
        config.train.steps = 2
        return config

    monkeypatch.setattr(tracking, "load_experiment", shrunk)
    lab = Laboratory(tmp_path)
    found = tracking.follows(lab, "tracking", "tracking_positive")
    assert len(found.per_seed) == len(tracking.SEEDS)
    assert found.value == min(found.per_seed)
    assert tracking.stays(lab, "tracking_positive").value >= found.baseline
    assert {claim.id for claim in tracking.CLAIMS} == {"7.parity", "7.parity_positive", "7.s3", "7.s3_positive"}


def test_the_language_model_takes_the_layer_by_name():
    config = resolve(load_experiment(f"{tracking.EXPERIMENT}:lm"))
    config.data.vocab_size = 0
    config.model.update(width=16, depth=2, heads=2)
    model = find("models", config.model.name).make(config, 11)
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    logits, _ = jax.eval_shape(model.apply, params, tokens)
    assert logits.shape == (1, 8, 11)
    assert any("transition" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))

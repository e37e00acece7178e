"""Subject and verb: sentences that are what they say, and the rank of two forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import base_config, resolve
from paperlab.data.synthetic import agreement
from paperlab.discovery import find
from paperlab.errors import ConfigError

PLURALS = {f"{noun}s" for noun in agreement.NOUNS}


def task_of(**model):
    config = base_config(task="agreement", model="papers.universal_transformer.decoder")
    config.model.update(width=8, hidden=12, heads=2, steps=2, **model)
    config.data.update(sequence_length=agreement.LONGEST, batch_size=4)
    config.task.validation_examples = 8
    return find("tasks", "agreement").make(resolve(config))


@pytest.mark.parametrize("attractors", [0, 2, 5])
def test_verbs_agree_with_their_subject_past_nouns_of_the_other_number(attractors):
    batch = agreement.examples(np.arange(200), attractors=attractors)
    numbers = set()
    for row, at, wrong in zip(batch["targets"], batch["verb"], batch["wrong"], strict=True):
        words = agreement.spelled(row)
        plural = [word in PLURALS for word in words[:at] if word in PLURALS or word in agreement.NOUNS]
        assert sum(noun != plural[0] for noun in plural[1:]) == attractors
        forms = words[at], agreement.WORDS[wrong]
        assert (forms[0] in agreement.VERBS) == plural[0]
        assert sorted(forms) == [bare := min(forms, key=len), f"{bare}s"]
        assert words[-1] == "."
        numbers.add(plural[0])
    assert numbers == {True, False}
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


def test_the_right_form_is_ranked_above_the_wrong_one():
    task = task_of()
    batch = next(iter(task.data("attractors_3")))
    logits = jax.nn.one_hot(jnp.asarray(batch["targets"]), task.vocab_size)
    wrong = logits.at[0, batch["verb"][0], batch["wrong"][0]].set(2.0)
    found = task.metrics(wrong, jnp.zeros(batch["targets"].shape), batch)
    assert float(found["verb_accuracy"][0] / found["verb_accuracy"][1]) == 0.75
    assert task.summary() == {"baselines": {"chance_accuracy": 0.5}}


def test_a_model_that_ponders_shows_how_long(tmp_path):
    task = task_of(recurrence="act")
    batch = task.data("train")[0]
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in task.batch_spec().items()
    }
    params, state = task.init(jax.random.key(0), batch)
    total, weight, aux = jax.jit(task.loss)(params, state, batch, jax.random.key(1), 0)
    loss, count = aux["metrics"]["loss"]
    assert float(total / weight) > float(loss / count) + 0.01
    assert task.show(params, state, tmp_path) == {"ponder": "ponder.png"}
    assert (tmp_path / "ponder.png").stat().st_size > 10_000
    assert task_of().show(params, state, tmp_path) == {}


def test_what_lies_between_does_not_tell_the_number():
    batch = agreement.examples(np.arange(2000))
    same, nearest = 0, 0
    for row, at in zip(batch["targets"], batch["verb"], strict=True):
        plural = [word in PLURALS for word in agreement.spelled(row)[:at] if word in PLURALS or word in agreement.NOUNS]
        if len(plural) > 1:
            nearest += 1
            same += plural[0] == plural[-1]
    assert abs(same / nearest - 0.5) < 4 * 0.5 / nearest**0.5


@pytest.mark.parametrize("options", [(6, 0, 40), (5, 6, 40), (5, 0, 10)])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ConfigError, match="config"):
        agreement.check(*options)

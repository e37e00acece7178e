"""Decoding: prefill and steps give what the whole forward pass gives, in memory that does not grow."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paperlab
from paperlab import decoding
from paperlab import generate as front
from paperlab.data.tokenizers import ByteTokenizer
from paperlab.models import lm

B, T, STEPS, VOCAB = 2, 5, 8, 13


def build(vocab=VOCAB, **options):
    sizes = {"width": 16, "depth": 2, "heads": 2, "ffn_multiple": 8, "tie_embeddings": False}
    model = lm.make(
        {"model": {**lm.DEFAULTS, **sizes, **options}, "mixers": {"attention": {"position": "learned"}}}, vocab
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), PROMPT)
    draw = np.random.default_rng(0).normal
    return model, jax.tree.map(lambda a: 0.4 * draw(size=a.shape).astype(a.dtype), shapes)


PROMPT = jax.random.randint(jax.random.key(1), (B, T), 0, VOCAB)
KEY = jax.random.key(2)


@pytest.mark.parametrize("hybrid", ["gla", "gla,attention"])
def test_greedy_decoding_equals_the_whole_forward_pass(hybrid):
    model, params = build(hybrid=hybrid)
    tokens = decoding.generate(model, params, PROMPT, STEPS, KEY, temperature=0.0)
    assert tokens.shape == (B, STEPS)
    text = jnp.concatenate([PROMPT, tokens], 1)
    logits, _ = jax.jit(model.apply)(params, text)
    np.testing.assert_array_equal(logits[:, T - 1 : -1].argmax(-1), tokens)
    assert len(np.unique(tokens)) > 1


@pytest.mark.parametrize("rule", [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}, {}])
def test_stream_yields_the_tokens_of_generate(rule):
    model, params = build(hybrid="gla,attention")
    at_once = decoding.generate(model, params, PROMPT, STEPS, KEY, **rule)
    one_by_one = jnp.stack(list(decoding.stream(model, params, PROMPT, STEPS, KEY, **rule)), 1)
    np.testing.assert_array_equal(at_once, one_by_one)


def test_draws_follow_temperature_and_top_k():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    many = jnp.broadcast_to(logits, (20_000, 4))

    def shares(temperature, top_k):
        drawn = decoding._draw(many, KEY, jnp.float32(temperature), temperature == 0, top_k)
        return np.bincount(drawn, minlength=4) / drawn.size

    np.testing.assert_allclose(shares(1.0, 0), [0.1, 0.4, 0.2, 0.3], atol=0.015)
    np.testing.assert_allclose(shares(1.0, 2), [0, 4 / 7, 0, 3 / 7], atol=0.015)
    np.testing.assert_allclose(shares(0.5, 0), np.array([1, 16, 4, 9]) / 30, atol=0.015)
    np.testing.assert_allclose(shares(0.0, 0), [0, 1, 0, 0])
    np.testing.assert_allclose(shares(1.0, 1), [0, 1, 0, 0])
    np.testing.assert_allclose(shares(1.0, 99), [0.1, 0.4, 0.2, 0.3], atol=0.015)


def test_memory_does_not_grow_with_the_text():
    model, params = build()

    def bytes_used(steps):
        run = partial(decoding.generate, model, steps=steps, temperature=0.0)
        compiled = (
            jax.jit(lambda p, prompt, key: run(p, prompt_BxT=prompt, key=key)).lower(params, PROMPT, KEY).compile()
        )
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes - memory.output_size_in_bytes

    state = [sum(a.nbytes for a in jax.tree.leaves(model.zero_state(B, n))) for n in (10, 10_000)]
    assert state[0] == state[1]
    assert bytes_used(4096) <= bytes_used(64) + 4 * 4096 * B


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0: needs at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: must be >= 0"),
        ({"top_k": -2}, "top_k=-2: must be >= 0"),
        ({"prompt_BxT": PROMPT[:, :0]}, "at least one token"),
        ({"prompt_BxT": PROMPT[0]}, "needs shape"),
        ({"prompt_BxT": PROMPT.astype(jnp.float32)}, "integer token ids"),
    ],
)
@pytest.mark.parametrize("function", [decoding.generate, decoding.stream])
def test_wrong_arguments_are_named_at_once(function, change, message):
    model, params = None, None
    with pytest.raises(ValueError, match=message):
        function(model, params, **{"prompt_BxT": PROMPT, "steps": 3, "key": KEY, **change})


@pytest.fixture
def run_directory(monkeypatch):
    model, params = build(257)
    run = SimpleNamespace(model=model, params=params, tokenizer=ByteTokenizer())
    monkeypatch.setattr(paperlab, "load", lambda workdir: run, raising=False)
    return run


def test_command_line(run_directory, capsys):
    arguments = ["--workdir=anywhere", "--prompt=def ", "--tokens=12", "--temperature=0.8", "--top_k=5", "--seed=3"]
    assert front.main(arguments) == 0
    first = capsys.readouterr().out
    assert first.startswith("def ")
    assert front.main(arguments) == 0
    assert capsys.readouterr().out == first
    prompt = jnp.array([[256, *b"def "]])
    tokens = decoding.generate(
        run_directory.model, run_directory.params, prompt, 12, jax.random.key(3), temperature=0.8, top_k=5
    )
    text = bytes(t for t in np.asarray(tokens[0]) if t < 256).decode("utf-8", "replace")
    assert first == f"def {text}\n"


@pytest.mark.parametrize("flag", ["--tokens=0", "--temperature=-1", "--top_k=-1"])
def test_command_line_refuses_in_one_line(run_directory, capsys, flag):
    assert front.main(["--workdir=anywhere", flag]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_pieces_are_whole_characters_and_end_with_the_document():
    tokens = [*"aé€".encode(), 0xC3, 256, 65]
    pieces = list(front._pieces((jnp.array([t]) for t in tokens), ByteTokenizer()))
    assert pieces[:3] == ["a", "é", "€"]
    assert "".join(pieces) == "aé€\N{REPLACEMENT CHARACTER}"

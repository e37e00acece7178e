"""Milliseconds a generated token against the length of the context.

Decoding steps of the default model with its recurrent state, and of the same with softmax attention and its cache, one row,
after a context of so many tokens. State and cache are filled with noise rather than by reading a text: what they hold does not
change the time.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from paperlab.bench.record import Aim, Options, Row, find_row
from paperlab.bench.subject import configured
from paperlab.bench.timing import interleaved, ratio
from paperlab.discovery import find

CONTEXTS, STEPS, ROUNDS = (128, 512, 2048, 8192), 64, 9
MIXERS = ("gla", "attention")


def rows(options: Options) -> Iterable[Row]:
    """One row a context length."""
    contexts, steps, rounds = ((16, 32), 4, 2) if options.quick else (CONTEXTS, STEPS, ROUNDS)
    models = {mixer: _model(options, mixer) for mixer in MIXERS}
    decoders = {
        (mixer, context): Decoder(model, params, context, steps)
        for mixer, (model, params) in models.items()
        for context in contexts
    }
    calls = {f"{mixer} {context}": decoder.run for (mixer, context), decoder in decoders.items()}
    samples = interleaved(calls, rounds=rounds, per_call=steps)
    for context in contexts:
        own = {mixer: samples[f"{mixer} {context}"] for mixer in MIXERS}
        numbers = {f"{mixer}_state_bytes": decoders[mixer, context].bytes for mixer in MIXERS}
        own_ratio = {"attention_over_gla": ratio(own, "attention", "gla")}
        yield Row({"context": context, "batch": 1, "tokens": steps}, own, {**own_ratio, **numbers})


def _model(options: Options, mixer: str) -> tuple[Any, Any]:
    config = configured(options.config, {"model.mixer": mixer}, quick=options.quick)
    task = find("tasks", config.task.name).make(config)
    tokens = jnp.zeros((1, 8), jnp.int32)
    return task.model, jax.jit(task.model.init)(jax.random.key(0), tokens)


class Decoder:
    """A scan of decoding steps after a context; each call goes on from the same state."""

    def __init__(self, model: Any, params: Any, context: int, steps: int):
        self.params = params
        self.state = _noise(model.zero_state(1, context + steps))
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        self.steps = jax.jit(partial(_decode, model, context, steps))

    def run(self) -> jax.Array:
        return self.steps(self.params, self.state)


def _decode(model: Any, context: int, steps: int, params: Any, state: Any) -> jax.Array:
    def step(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
        token, state = carry
        logits, state = model.apply(params, token, state, jnp.full((1,), context, jnp.int32) + i, method="step")
        token = logits.argmax(-1).astype(jnp.int32)
        return (token, state), token

    _, tokens = jax.lax.scan(step, (jnp.zeros((1,), jnp.int32), state), jnp.arange(steps))
    return tokens


def _noise(state: Any) -> Any:
    def one(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype) / 8

    return jax.tree.map(one, state)


def _growth(found: Sequence[Row]) -> float | None:
    first, last = find_row(found, context=CONTEXTS[0]), find_row(found, context=CONTEXTS[-1])
    if first is None or last is None:
        return None
    return ratio({"a": last.samples["gla"], "b": first.samples["gla"]}, "a", "b")


AIMS = (Aim("a token after 8192 over one after 128, recurrent state", "<=", 1.1, "times", _growth),)

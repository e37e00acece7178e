"""Autoregressive decoding with any model that has a step form.

    logits, state = model(prompt)                                            one parallel call
    token ~ softmax(logits / temperature);  logits, state = step(token)      again and again

`generate` is one jittable program; `stream` yields the same tokens one by one as they come. For recurrent mixers memory
is constant in the number of tokens; attention mixers hold a cache for prompt and continuation.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def generate(
    model: Any, params: Any, prompt_BxT: Array, steps: int, key: Array, *, temperature: float = 1.0, top_k: int = 0
) -> Array:
    """Continues every prompt by `steps` tokens, [B, steps] int32.

    Args:
      model: has `hidden`, `head`, `step` and `zero_state` like models.lm.LanguageModel; hashable.
      params: what `model.init` returned.
      prompt_BxT: token ids, T >= 1.
      steps: number of tokens to draw.
      key: randomness; unused at temperature 0.
      temperature: 0 takes the most probable token.
      top_k: draws among the k most probable tokens only; 0 among all.

    Raises:
      ValueError: for an empty prompt, a negative number, or token ids that are no integers.
    """
    prompt = _check(prompt_BxT, steps, temperature, top_k)
    return _generate(model, params, prompt, steps, key, jnp.float32(temperature), temperature == 0, top_k)


def stream(
    model: Any, params: Any, prompt_BxT: Array, steps: int, key: Array, *, temperature: float = 1.0, top_k: int = 0
) -> Iterator[Array]:
    """Yields the tokens of `generate`, [B] int32 each, as soon as they are drawn."""
    prompt = _check(prompt_BxT, steps, temperature, top_k)
    return _stream(model, params, prompt, steps, key, jnp.float32(temperature), temperature == 0, top_k)


def _stream(model, params, prompt, steps, key, *rule):
    logits, state = _prefill(model, params, prompt, prompt.shape[1] + steps)
    for i in range(steps):
        token = _draw(logits, jax.random.fold_in(key, i), *rule)
        yield token
        if i + 1 < steps:
            logits, state = _step(model, params, token, state, jnp.int32(prompt.shape[1] + i))


@partial(jax.jit, static_argnums=(0, 3, 6, 7))
def _generate(model, params, prompt, steps, key, temperature, greedy, top_k):
    T = prompt.shape[1]
    logits, state = _prefill(model, params, prompt, T + steps)

    def step(carry, i):
        logits, state = carry
        token = _draw(logits, jax.random.fold_in(key, i), temperature, greedy, top_k)
        return _step(model, params, token, state, T + i), token

    _, tokens = jax.lax.scan(step, (logits, state), jnp.arange(steps))
    return tokens.T


@partial(jax.jit, static_argnums=(0, 3))
def _prefill(model, params, prompt, max_len):
    """Logits after the prompt [B, V], and the state."""
    state = model.zero_state(prompt.shape[0], max_len)
    hidden, state = model.apply(params, prompt, state=state, method="hidden")
    return model.apply(params, hidden[:, -1], method="head"), state


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(model, params, token, state, position):
    return model.apply(params, token, state, jnp.broadcast_to(position, token.shape), method="step")


@partial(jax.jit, static_argnums=(3, 4))
def _draw(logits, key, temperature, greedy, top_k):
    if greedy:
        return logits.argmax(-1).astype(jnp.int32)
    if top_k:
        kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)


def _check(prompt: Array, steps: int, temperature: float, top_k: int) -> Array:
    prompt = jnp.asarray(prompt)
    if prompt.ndim != 2 or prompt.shape[1] < 1:
        raise ValueError(f"prompt: needs shape [batch, length] with at least one token, got {prompt.shape}")
    if not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(f"prompt: needs integer token ids, got {prompt.dtype}")
    if steps < 1:
        raise ValueError(f"steps={steps}: needs at least 1 token to generate")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: must be >= 0 (0 takes the most probable token), and finite")
    if top_k < 0:
        raise ValueError(f"top_k={top_k}: must be >= 0 (0 draws among all tokens)")
    return prompt.astype(jnp.int32)

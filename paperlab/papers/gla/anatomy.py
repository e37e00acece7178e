"""What a trained GLA keeps and forgets, read from any language model with such layers.

    gates          log alpha_t of every layer, head and key channel
    half_lives     ln 2 / mean(-log alpha): tokens after which a channel holds half of what was written
    states         S_t of every layer and head after every token, by the recurrent form
    influence      KL(p_t || p_t with another token at j) in bits: what token j still changes at t
    effective_rank exp(entropy of the singular values / their sum): how many directions of S_t are in use

`notebooks/gla.ipynb` shows them on a small model; `pictures.py` draws them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def gates(model: Any, params: Any, tokens_BxT: Any, segment_ids: Any = None) -> Array:
    """log alpha [layers, B, T, G, K] of the GLA layers, in their order; one-number gates are repeated over K.

    Raises:
      ValueError: the model has no GLA layer.
    """
    if "gla" not in model.layer_names():
        raise ValueError(f"the model has no gla layer, only {', '.join(dict.fromkeys(model.layer_names()))}")
    return _gates(model, params, jnp.asarray(tokens_BxT), segment_ids)


@partial(jax.jit, static_argnums=0)
def _gates(model: Any, params: Any, tokens: Array, segment_ids: Array | None) -> Array:
    _, seen = model.apply(params, tokens, segment_ids=segment_ids, mutable=["intermediates"])
    (layers,) = seen["intermediates"]["gla"]
    return layers["mixer"]["log_alpha"][0]


def half_lives(log_alpha: ArrayLike, axis: int | tuple[int, ...] = ()) -> np.ndarray:
    """ln 2 / mean of -log alpha over `axis`, in tokens; infinite where nothing is forgotten.

    What stays of a write after n tokens is exp(sum of log alpha), so the mean of the logarithm is what counts.
    """
    with np.errstate(divide="ignore"):
        return np.log(2) / -np.asarray(log_alpha, np.float64).mean(axis)


def states(model: Any, params: Any, tokens_T: Any) -> Array:
    """S_t [T, layers, H, K, V] after each of T tokens, from a zero state, one step at a time."""
    return _states(model, params, jnp.asarray(tokens_T))


@partial(jax.jit, static_argnums=0)
def _states(model: Any, params: Any, tokens: Array) -> Array:
    def step(state: Any, token_and_position: tuple[Array, Array]) -> tuple[Any, Array]:
        token, position = token_and_position
        _, state = model.apply(params, token[None], state, position[None], method="step")
        return state, state["gla"]["S"][:, 0]

    length = tokens.shape[0]
    return jax.lax.scan(step, model.zero_state(1, length), (tokens, jnp.arange(length)))[1]


def effective_rank(S: Array) -> Array:
    """exp(-sum p log p) with p the singular values of S [..., K, V] over their sum; between 1 and min(K, V), 0 for S = 0."""
    sizes = jnp.linalg.svd(S, compute_uv=False)
    share = sizes / jnp.maximum(sizes.sum(-1, keepdims=True), jnp.finfo(sizes.dtype).tiny)
    entropy = -(share * jnp.log(jnp.where(share > 0, share, 1))).sum(-1)
    return jnp.where(sizes[..., 0] > 0, jnp.exp(entropy), 0)


def influence(model: Any, params: Any, tokens_T: Any, *, key: Array, draws: int = 4, rows: int = 32) -> np.ndarray:
    """What token j changes in the prediction after token t: KL in bits, [T (j), T (t)], 0 for t < j.

    Token j is replaced by another one that occurs in the text; the mean over `draws` replacements is given.

    Args:
      model, params: any language model.
      tokens_T: one text, with at least two different tokens.
      key: which replacements are drawn.
      draws: replacements of each token.
      rows: texts that go through the model at once.
    """
    tokens = np.asarray(tokens_T)
    T = len(tokens)
    others = _replacements(tokens, draws, np.random.default_rng(np.asarray(jax.random.key_data(key))))
    batch = np.repeat(tokens[None], draws * T, 0)
    batch[np.arange(draws * T), np.tile(np.arange(T), draws)] = others.ravel()
    padded = np.concatenate([batch, np.repeat(tokens[None], -len(batch) % rows, 0)])
    usual = _log_probabilities(model, params, jnp.asarray(tokens[None]))
    parts = [np.asarray(_divergence(model, params, usual, part)) for part in np.split(padded, len(padded) // rows)]
    bits = np.concatenate(parts)[: draws * T].reshape(draws, T, T).mean(0)
    return np.triu(np.maximum(bits, 0))


def _replacements(tokens: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws, T]: for every token another one of the text, as frequent as it is there."""
    if (tokens == tokens[0]).all():
        raise ValueError("the text needs at least two different tokens to exchange one for another")
    pools = {token: tokens[tokens != token] for token in np.unique(tokens)}
    return np.stack([rng.choice(pools[token], draws) for token in tokens], axis=1)


@partial(jax.jit, static_argnums=0)
def _log_probabilities(model: Any, params: Any, tokens: Array) -> Array:
    return jax.nn.log_softmax(model.apply(params, tokens)[0])


@partial(jax.jit, static_argnums=0)
def _divergence(model: Any, params: Any, usual: Array, tokens: Array) -> Array:
    changed = _log_probabilities(model, params, tokens)
    return (jnp.exp(usual) * (usual - changed)).sum(-1) / jnp.log(2)


def state_bytes(model: Any, length: int) -> int:
    """Bytes that decoding one text must hold after `length` tokens, without allocating them."""
    state = jax.eval_shape(lambda: model.zero_state(1, length))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

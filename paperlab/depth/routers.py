"""Routers of Mixture-of-Recursions: which tokens go deeper, and what keeps that balanced and causal.

    expert choice    recursion r takes its k_r = max(1, floor(c_r T)) best tokens,  c_r = (R - r) / R,  r = 0 .. R - 1
    token choice     each token takes its depth once, argmax over R scores

Top-k over a sequence looks ahead. A loss teaches the logits to say by themselves whether a token is taken (`agreement_loss`), so
that `logit > 0` can decide while decoding.

Source: arXiv 2507.10524, section 2.2 and appendix B; z-loss: ST-MoE (2202.08906); loss-free balancing: 2408.15664.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.linear import linear
from paperlab.layers.norms import at_least_float32

NETS = {"linear": 0, "mlp": 2, "wide": 4}  # width of the hidden layer, in widths of the input
SCORES = ("sigmoid", "tanh", "none")


class Router(nn.Module):
    """Logits [..., outputs] in float32 from x [..., D]: linear without bias, or D -> 2 D -> outputs, or D -> 4 D -> outputs."""

    outputs: int
    net: str = "linear"
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = NETS[self.net] * x.shape[-1]
        if hidden:
            x = nn.gelu(linear(hidden, dtype=self.dtype, std=self.init_std)(x), approximate=False)
        return at_least_float32(linear(self.outputs, dtype=self.dtype, std=self.init_std)(x))


def capacities(times: int) -> tuple[float, ...]:
    """c_r: all tokens in the first recursion, then evenly fewer."""
    return tuple((times - r) / times for r in range(times))


def counts(length: int, capacity: tuple[float, ...]) -> tuple[int, ...]:
    """k_r of a sequence of `length` tokens, from the full length, never from what is left of it."""
    return tuple(max(1, min(length, math.floor(c * length + 1e-6))) for c in capacity)


def warmed(capacity: float, step: Array, warm: int) -> Array:
    """The share at a step of training: from everything down to `capacity` along a cosine over `warm` steps."""
    down = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, step / max(warm, 1))))
    return capacity + (1 - capacity) * down


def gate(logits: Array, score: str = "sigmoid", alpha: float = 0.1, temperature: float = 1.0) -> Array:
    """alpha sigmoid(z / temperature), alpha tanh(z / temperature), or z itself."""
    if score not in SCORES:
        raise ValueError(f"score={score!r}: choose one of {', '.join(SCORES)}")
    z = logits / temperature
    if score == "none":
        return z
    return alpha * (jax.nn.sigmoid(z) if score == "sigmoid" else jnp.tanh(z))


def best(scores_BxT: Array, valid_BxT: Array, k: int, k_B: Array | None = None) -> tuple[Array, Array]:
    """The k best valid positions of each row, in their own order; what is not there comes last.

    Args:
      scores_BxT: higher is better.
      valid_BxT: bool; the others are never taken.
      k: the most that is taken of a row, a number.
      k_B: the same row by row, at most k; k if omitted.

    Returns:
      positions int32 [B, k], and bool [B, k]: whether the place holds a token.
    """
    T = scores_BxT.shape[1]
    found, places = jax.lax.top_k(jnp.where(valid_BxT, scores_BxT, -jnp.inf), k)
    taken = (found > -jnp.inf) & (jnp.arange(k) < (k if k_B is None else k_B[:, None]))
    order = jnp.argsort(jnp.where(taken, places, T), axis=1)
    return jnp.take_along_axis(places, order, 1).astype(jnp.int32), jnp.take_along_axis(taken, order, 1)


class Agreement(NamedTuple):
    """loss: binary cross-entropy of logits against what was taken; accuracy: share of tokens on which logit >= 0 agrees."""

    loss: Array
    accuracy: Array


def agreement(logits: Array, taken: Array, active: Array) -> Agreement:
    """How well logits say by themselves what top-k took: mean over the active tokens.

    Args:
      logits, taken, active: [B, T]; tokens that are not active don't count.
    """
    n = jnp.maximum(active.sum(), 1)
    loss = jnp.where(active, jax.nn.softplus(logits) - logits * taken, 0).sum() / n
    return Agreement(loss, (((logits >= 0) == taken) & active).sum() / n)


def z_loss(logits: Array, active: Array) -> Array:
    """Mean over the active tokens of logsumexp(logits)^2, logits [B, T, R]; of one logit that is its square."""
    z = jax.nn.logsumexp(logits, -1)
    return jnp.where(active, z**2, 0).sum() / jnp.maximum(active.sum(), 1)


class Balance(NamedTuple):
    """loss: sum_i f_i P_i, 1 where all is even; ratio [R]: share of tokens at each depth; violation: max over mean load less 1."""

    loss: Array
    ratio: Array
    violation: Array


def balance(scores: Array, depth: Array, active: Array) -> Balance:
    """How evenly token choice spreads: f_i = R times the share of tokens at depth i, P_i the mean score.

    Args:
      scores: [B, T, R]; depth: int [B, T]; active: bool [B, T].
    """
    R, n = scores.shape[-1], jnp.maximum(active.sum(), 1)
    ratio = (jax.nn.one_hot(depth, R) * active[..., None]).sum((0, 1)) / n
    mean = jnp.where(active[..., None], scores, 0).sum((0, 1)) / n
    return Balance((R * ratio * mean).sum(), ratio, ratio.max() * R - 1)


def rebalanced(bias: Array, ratio: Array, rate: float = 0.001) -> Array:
    """The bias [R] of loss-free balancing after a step: up where too few went, down where too many."""
    return bias + rate * jnp.sign(ratio.mean() - ratio)

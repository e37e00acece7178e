"""Multi-head attention over a row: both ways, causal, with a cache, or across to another row.

    y = softmax(q k^T / sqrt(d / heads)) v W_o,     q, k, v = x W_q, m W_k, m W_v;     no biases

A cache {"k", "v"} [B, M, H, d / H] holds the keys and values of what came before, in its first places. The softmax runs in float32
at least. Source: Universal Transformer, eq. 1 to 3.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.linear import xavier_linear
from paperlab.layers.norms import at_least_float32

Cache = dict[str, Array]


class Sight(NamedTuple):
    """Who sees whom.

    mask: bool, broadcastable to [B, T, S]; True where the query may see the key. None: all see all.
    valid: bool [B, T]; positions of this row that are tokens. None: all.
    segments: int32 [B, T]; documents of this row, for convolutions. None: one.
    seen_B: int32; tokens of this row that lie in the cache. None: there is no cache.
    """

    mask: Array | None = None
    valid: Array | None = None
    segments: Array | None = None
    seen_B: Array | None = None


def sight_of(
    T: int,
    *,
    causal: bool,
    valid: Array | None = None,
    segments: Array | None = None,
    seen_B: Array | None = None,
    slots: int = 0,
) -> Sight:
    """The sight of a row of T tokens; with `seen_B`, over a cache of `slots` places."""
    if seen_B is not None:
        time = seen_B[:, None] + jnp.arange(T)
        return Sight(jnp.arange(slots) <= time[:, :, None], valid, None, seen_B)
    mask = jnp.tril(jnp.ones((1, T, T), bool)) if causal else None
    for own in (None if valid is None else valid[:, None], None if segments is None else _same(segments)):
        if own is not None:
            mask = own if mask is None else mask & own
    return Sight(mask, valid, segments)


def _same(segments_BxT: Array) -> Array:
    return segments_BxT[:, :, None] == segments_BxT[:, None, :]


class Attention(nn.Module):
    """`dropout` is that of the weights."""

    width: int
    heads: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.q, self.k, self.v, self.out = (xavier_linear(self.width, dtype=self.dtype, gain=1.0) for _ in range(4))
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x_BxTxD: Array, sight: Sight, cache: Cache | None = None) -> tuple[Array, Cache | None]:
        """Of a row to itself; with a cache, to what lies in it and to itself, and the cache with this row written."""
        own = self.keys_values(x_BxTxD)
        if cache is not None and sight.seen_B is not None:
            own = cache = {name: write(cache[name], own[name], sight.seen_B) for name in own}
        return self.read(x_BxTxD, own, sight.mask), cache

    def keys_values(self, memory_BxSxD: Array) -> Cache:
        """What a row shows to others: {"k", "v"}, [B, S, H, d / H]."""
        return {"k": self._heads(self.k(memory_BxSxD)), "v": self._heads(self.v(memory_BxSxD))}

    def read(self, x_BxTxD: Array, memory: Cache, mask: Array | None = None) -> Array:
        """What T queries find in keys and values of S tokens; mask: bool, broadcastable to [B, T, S]."""
        q = self._heads(self.q(x_BxTxD)) * (self.width // self.heads) ** -0.5
        k, v = memory["k"].astype(q.dtype), memory["v"].astype(q.dtype)
        scores = at_least_float32(jnp.einsum("bthd,bshd->bhts", q, k))
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
        weights = self.drop(jax.nn.softmax(scores).astype(q.dtype), deterministic=not self.has_rng("dropout"))
        y = jnp.einsum("bhts,bshd->bthd", weights, v)
        return self.out(y.reshape(*y.shape[:2], -1))

    @nn.nowrap
    def zero_cache(self, batch: int, slots: int, dtype: DTypeLike | None = None) -> Cache:
        """An empty cache for `slots` tokens."""
        shape = (batch, slots, self.heads, self.width // self.heads)
        return {name: jnp.zeros(shape, dtype or self.dtype) for name in ("k", "v")}

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


def write(cache_BxMx: Array, new_BxTx: Array, seen_B: Array) -> Array:
    """Puts T new entries after the `seen_B` that a cache holds. What does not fit is lost: the caller gives enough places."""
    rows, at = jnp.arange(cache_BxMx.shape[0])[:, None], seen_B[:, None] + jnp.arange(new_BxTx.shape[1])
    return cache_BxMx.at[rows, at].set(new_BxTx.astype(cache_BxMx.dtype), mode="drop")

"""The transition function: what a step does to every position after attention.

    fc         relu(x W_1 + b_1) W_2 + b_2
    sepconv    pw_2(dw_2(relu(pw_1(dw_1(x)))));   dw: one filter a channel over positions, widths 3 and 5; pw: affine

Padded positions are set to 0 before each convolution. "same" looks both ways, "left" back alone, as a decoder must; a cache then
holds the last inputs of both convolutions. Source: Universal Transformer, section 2.1 and the authors' code.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.linear import xavier_linear
from paperlab.papers.universal_transformer.attention import Sight

KINDS = ("fc", "sepconv")
TAPS = (3, 5)
Tails = dict[str, Array]


class Transition(nn.Module):
    """`dropout` is that of the hidden layer."""

    width: int
    hidden: int
    kind: str = "fc"
    causal: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    taps: tuple[int, int] = TAPS

    def setup(self) -> None:
        self.up = xavier_linear(self.hidden, bias=True, dtype=self.dtype, gain=1.0)
        self.down = xavier_linear(self.width, bias=True, dtype=self.dtype, gain=1.0)
        if self.kind == "sepconv":
            self.first = DepthwiseConvolution(self.width, self.taps[0], self.causal, self.dtype)
            self.second = DepthwiseConvolution(self.hidden, self.taps[1], self.causal, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x_BxTxD: Array, sight: Sight, tails: Tails | None = None) -> tuple[Array, Tails | None]:
        """The transition, and the tails with this row added (None where none are given)."""
        after: dict[str, Any] = {}
        if self.kind == "sepconv":
            x_BxTxD, after["first"] = self.first(x_BxTxD, sight, tails["first"] if tails else None)
        h = self.drop(jax.nn.relu(self.up(x_BxTxD)), deterministic=not self.has_rng("dropout"))
        if self.kind == "sepconv":
            h, after["second"] = self.second(h, sight, tails["second"] if tails else None)
        return self.down(h), None if tails is None else after

    @nn.nowrap
    def zero_tails(self, batch: int, dtype: DTypeLike | None = None) -> Tails:
        """What lies before the first token; empty for "fc"."""
        if self.kind == "fc":
            return {}
        sizes = {"first": (self.taps[0] - 1, self.width), "second": (self.taps[1] - 1, self.hidden)}
        return {name: jnp.zeros((batch, *size), dtype or self.dtype) for name, size in sizes.items()}


class DepthwiseConvolution(nn.Module):
    """One filter a channel; tap 0 meets the earliest position."""

    features: int
    taps: int
    causal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxTxC: Array, sight: Sight, tail: Array | None = None) -> tuple[Array, Array | None]:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=0, out_axis=())
        kernel = self.param("kernel", init, (self.taps, self.features), jnp.float32).astype(self.dtype)
        T, K = x_BxTxC.shape[1], self.taps
        x = x_BxTxC if sight.valid is None else jnp.where(sight.valid[..., None], x_BxTxC, 0)
        if tail is not None:
            x = jnp.concatenate([tail.astype(x.dtype), x], 1)
            return _filtered([x[:, j : j + T] for j in range(K)], kernel), x[:, T:].astype(tail.dtype)
        before = K - 1 if self.causal else (K - 1) // 2
        x = jnp.pad(x, ((0, 0), (before, K - 1 - before), (0, 0)))
        if sight.segments is None:
            return _filtered([x[:, j : j + T] for j in range(K)], kernel), None
        own = jnp.pad(sight.segments, ((0, 0), (before, K - 1 - before)), constant_values=-1)
        near = [own[:, j : j + T] == sight.segments for j in range(K)]
        return _filtered([jnp.where(near[j][..., None], x[:, j : j + T], 0) for j in range(K)], kernel), None


def _filtered(shifted: list[Array], kernel_KxC: Array) -> Array:
    y = shifted[0] * kernel_KxC[0]
    for j in range(1, len(shifted)):
        y = y + shifted[j] * kernel_KxC[j]
    return y

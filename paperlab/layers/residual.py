"""Pre-norm residual branches on tokens that are not in time: LayerScale, stochastic depth, and the block made of them.

    y  = x + drop(s1 * mix(norm(x)))
    x' = y + drop(s2 * MLP(norm(y)))

drop: the branch of a whole row is left out with probability `rate`, and scaled by 1 / (1 - rate) where it is kept.
Sources: LayerScale, arXiv 2103.17239, eq. 4; stochastic depth, arXiv 1603.09382.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.mlp import MLP, SwiGLU
from paperlab.layers.norms import NORMS
from paperlab.layers.sharding import constrain_rows


def drop_path(x: Array, rate: Array | float, key: Array | None) -> Array:
    """x [B, ...] with the rows of a random share `rate` zero and the others scaled up; x itself without a key."""
    if key is None:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


class LayerScale(nn.Module):
    """x times a learned vector that starts at `initial`."""

    initial: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.constant(self.initial), x.shape[-1:], jnp.float32)
        return x * scale.astype(x.dtype)


class ResidualBlock(nn.Module):
    """`mixer` maps [B, ..., width] to the same shape; `layer_scale` 0: none.

    __call__(x, rate): `rate` of stochastic depth, 0 for none; it acts where an rng "dropout" is given.
    """

    mixer: Any
    width: int
    ffn_width: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    activation: str = "gelu_erf"
    gated: bool = False
    bias: bool = True
    layer_scale: float = 0.0
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02

    def setup(self) -> None:
        self.mixer_norm, self.ffn_norm = NORMS[self.norm](self.norm_eps), NORMS[self.norm](self.norm_eps)
        if self.gated:
            self.ffn: SwiGLU | MLP = SwiGLU(self.width, self.ffn_width, self.dtype, self.init_std)
        else:
            self.ffn = MLP(self.width, self.ffn_width, self.activation, self.bias, self.dtype, self.init_std)
        if self.layer_scale:
            self.mixer_scale, self.ffn_scale = LayerScale(self.layer_scale), LayerScale(self.layer_scale)

    def __call__(self, x: Array, rate: Array | float = 0.0) -> Array:
        mixed = self.mixer(self.mixer_norm(x))
        x = constrain_rows(x + self._dropped(self.mixer_scale(mixed) if self.layer_scale else mixed, rate))
        mixed = self.ffn(self.ffn_norm(x))
        return constrain_rows(x + self._dropped(self.ffn_scale(mixed) if self.layer_scale else mixed, rate))

    def _dropped(self, x: Array, rate: Array | float) -> Array:
        return drop_path(x, rate, self.make_rng("dropout") if self.has_rng("dropout") else None)

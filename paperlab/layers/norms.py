"""Normalisation over the last axis, computed in float32 whatever the input.

    RMSNorm    y = x / sqrt(mean(x^2) + eps) * scale
    LayerNorm  y = (x - mean(x)) / sqrt(var(x) + eps) * scale + bias

`shape` is the shape of the weights: () means the last axis alone; (H, V) gives every head its own weight.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax


def at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class RMSNorm(nn.Module):
    eps: float = 1e-6
    affine: bool = True
    shape: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x32 = at_least_float32(x)
        y = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        if self.affine:
            y = y * self.param("scale", nn.initializers.ones, self.shape or x.shape[-1:], jnp.float32)
        return y.astype(x.dtype)


class LayerNorm(nn.Module):
    eps: float = 1e-5
    affine: bool = True
    shape: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x32 = at_least_float32(x)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        y = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        if self.affine:
            shape = self.shape or x.shape[-1:]
            y = y * self.param("scale", nn.initializers.ones, shape, jnp.float32)
            y = y + self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return y.astype(x.dtype)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}

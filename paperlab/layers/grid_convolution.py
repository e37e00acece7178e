"""Causal depthwise convolution on a grid: every node sees what lies to its upper left, channel by channel.

y_xy = b + sum_ij w_ij * z_{x-i, y-j},   i, j = 0 .. width-1,   z beyond the border = 0
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


class GridConvolution(nn.Module):
    """[B, X, Y, C] -> the same shape; kernel [width, width, C], w_00 first."""

    width: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        X, Y, C = x.shape[1:]
        init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform", in_axis=(0, 1), out_axis=())
        kernel = self.param("kernel", init, (self.width, self.width, C), jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (C,), jnp.float32).astype(self.dtype)
        W = self.width - 1
        wide = jnp.pad(x.astype(self.dtype), ((0, 0), (W, 0), (W, 0), (0, 0)))
        shifted = [
            wide[:, W - i : W - i + X, W - j : W - j + Y] * kernel[i, j]
            for i in range(self.width)
            for j in range(self.width)
        ]
        return sum(shifted[1:], shifted[0]) + bias

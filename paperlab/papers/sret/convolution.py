"""Convolutions of 3 x 3 with a bias: one matrix product over the nine shifted images, or XLA's own.

XLA turns a convolution with weights for each of several seeds into a grouped one, which is slow on a CPU; products over patches
become a batch of matrix products. Both give the same numbers and have the same parameters (those of flax.linen.Conv).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

HOW = ("xla", "patches")


class Convolution(nn.Module):
    """Padding 1. `groups` is 1, or the number of input channels: each then makes width / groups channels of its own."""

    width: int
    stride: int
    groups: int = 1
    how: str = "xla"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxXxYxC: Array) -> Array:
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        shape = (3, 3, x_BxXxYxC.shape[-1] // self.groups, self.width)
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(self.dtype)
        x = x_BxXxYxC.astype(self.dtype)
        if self.how == "xla":
            strides, padding, layout = (self.stride,) * 2, ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
            y = lax.conv_general_dilated(
                x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=self.groups
            )
            return y + bias
        shifted = _shifted(x, self.stride)
        if self.groups == 1:
            return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, self.width) + bias
        own = kernel.reshape(9, self.groups, -1)
        taps = [part[..., None] * own[i] for i, part in enumerate(shifted)]
        return jnp.stack(taps).sum(0).reshape(*shifted[0].shape[:-1], self.width) + bias


def _shifted(x: Array, stride: int) -> list[Array]:
    """What each of the nine taps meets, [B, X / stride, Y / stride, C]."""
    _, X, Y, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + X : stride, j : j + Y : stride] for i in range(3) for j in range(3)]

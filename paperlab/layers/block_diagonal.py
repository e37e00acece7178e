"""Input maps of recurrent cells, block-diagonal over heads: head h of the input feeds head h of every gate.

    y_{g,h} = B_{h,g} x_h + b_{g,h}          B [heads, d_in / heads, gates, d / heads], b [gates, d]

One batched matrix product over all rows, in the compute dtype.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.initializers import Initializer
from jax import Array
from jax.typing import DTypeLike


class BlockDiagonal(nn.Module):
    """[..., d_in] -> [..., gates, features]. Without `bias_init` there is no bias."""

    features: int
    gates: int
    heads: int
    kernel_init: Initializer
    bias_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        heads, lead, fan_in = self.heads, x.shape[:-1], x.shape[-1] // self.heads
        shape = (heads, fan_in, self.gates, self.features // heads)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        rows = x.astype(self.dtype).reshape(-1, heads, fan_in)
        y = jnp.einsum("rhi,hif->rhf", rows, kernel.reshape(heads, fan_in, -1))
        y = y.reshape(-1, heads, self.gates, shape[-1]).swapaxes(1, 2).reshape(*lead, self.gates, self.features)
        if self.bias_init is None:
            return y
        return y + self.param("bias", self.bias_init, (self.gates, self.features), jnp.float32).astype(self.dtype)

"""Dense projections: float32 parameters, products in the compute dtype, N(0, std) or scaled Xavier initialisation.

    y = x W + b

All leading axes are flattened into one first: the gradient x^T dy is then a plain matrix product. With [B, T, D] operands XLA
transposes both on a CPU, element by element inside the fused activations, which made a SwiGLU four times slower.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.initializers import Initializer
from jax import Array
from jax.typing import DTypeLike

XAVIER_GAIN = 2.0**-2.5  # of the queries, keys and gates in berlino/gated_linear_attention


class Dense(nn.Module):
    features: int
    use_bias: bool
    dtype: DTypeLike
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y


def matmul(x: Array, kernel_DxF: Array, *, out_dtype: DTypeLike | None = None) -> Array:
    """x [..., D] times kernel, as one matrix product over all rows."""
    rows = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel_DxF, preferred_element_type=out_dtype)
    return rows.reshape(*x.shape[:-1], kernel_DxF.shape[-1])


def linear(features: int, *, bias: bool = False, dtype: DTypeLike = jnp.float32, std: float = 0.02) -> Dense:
    return Dense(features, bias, dtype, nn.initializers.normal(std))


def xavier_linear(
    features: int, *, bias: bool = False, dtype: DTypeLike = jnp.float32, gain: float = XAVIER_GAIN
) -> Dense:
    """Uniform with variance gain^2 * 2 / (fan_in + fan_out)."""
    return Dense(features, bias, dtype, nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform"))

"""Dense projections: float32 parameters, products in the compute dtype, N(0, std) or scaled Xavier initialisation."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

XAVIER_GAIN = 2.0**-2.5  # of the queries, keys and gates in berlino/gated_linear_attention


def linear(features: int, *, bias: bool = False, dtype: DTypeLike = jnp.float32, std: float = 0.02) -> nn.Dense:
    return nn.Dense(
        features, use_bias=bias, dtype=dtype, param_dtype=jnp.float32, kernel_init=nn.initializers.normal(std)
    )


def xavier_linear(
    features: int, *, bias: bool = False, dtype: DTypeLike = jnp.float32, gain: float = XAVIER_GAIN
) -> nn.Dense:
    """Uniform with variance gain^2 * 2 / (fan_in + fan_out)."""
    init = nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")
    return nn.Dense(features, use_bias=bias, dtype=dtype, param_dtype=jnp.float32, kernel_init=init)

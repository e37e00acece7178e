"""Rotary position embedding (arXiv 2104.09864, eq. 34, in the half-split layout of GPT-NeoX and Llama).

(x_i, x_{i+D/2}) is turned by the angle p * theta^(-2i/D) at position p, so that q . k depends on the distance alone
"""

import jax.numpy as jnp
from jax import Array


def rotate(x_BxTxHxD: Array, positions_BxT: Array, theta: float = 10_000.0) -> Array:
    half = x_BxTxHxD.shape[-1] // 2
    dtype = jnp.promote_types(x_BxTxHxD.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(half, dtype=dtype) / half)
    angle = positions_BxT.astype(dtype)[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x1, x2 = jnp.split(x_BxTxHxD.astype(dtype), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BxTxHxD.dtype)

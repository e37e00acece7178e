"""ParaGRU: a GRU whose channels do not mix (arXiv 2510.21450, section 3).

z = sigmoid(a_z h + x_z),  r = sigmoid(a_r h + x_r),  c = phi(a_c (h r) + x_c),  h' = (1 - z) h + z c
"""

import jax
import jax.numpy as jnp

from kernels_pallas import newton_gru
from paperlab.layers.recurrent_cell import first_bias, recurrent_weights

STRUCTURE = "diagonal"
INPUTS = 3  # z, r, c
bias = first_bias


def init(key, width, style="library"):
    """Recurrent weights of z, r, c."""
    return {"a": recurrent_weights(key, (3, width), style)}


def step(params, x, h, nonlinearity=jnp.tanh):
    """x [..., 3, width] with the bias, h [..., width] -> h'."""
    (a_z, a_r, a_c), (x_z, x_r, x_c) = params["a"], jnp.moveaxis(x, -2, 0)
    z, r = jax.nn.sigmoid(a_z * h + x_z), jax.nn.sigmoid(a_r * h + x_r)
    return (1 - z) * h + z * nonlinearity(a_c * (h * r) + x_c)


def fused(params, x, h0, **how):
    """The whole solver as one kernel: (states, residual)."""
    return newton_gru(x, params["a"], h0, **how)

"""ParaLSTM: coupled input and forget gate, peepholes, channels that do not mix (arXiv 2510.21450, section 3).

f = sigmoid(a_f h + x_f + p_f c),  c' = f c + (1 - f) phi(a_c h + x_c),  o = sigmoid(a_o h + x_o + p_o c'),  h' = o psi(c')

The state is (c, h); the peephole of the output gate reads the new c'.
"""

import jax
import jax.numpy as jnp

from kernels_pallas import newton_lstm
from paperlab.layers.recurrent_cell import first_bias, recurrent_weights

STRUCTURE = "blocks"
VARIABLES = 2  # c, h
INPUTS = 3  # f, o, c
FAN_OUT = "head"  # as in the authors' library, where ParaGRU has the whole width
bias = first_bias


def init(key, width, style="library"):
    """Recurrent weights of f, o, c and the peepholes of f, o."""
    a, p = jax.random.split(key)
    return {"a": recurrent_weights(a, (3, width), style), "p": recurrent_weights(p, (2, width), style)}


def step(params, x, h, nonlinearity=jnp.tanh, output_nonlinearity=jnp.tanh):
    """x [..., 3, width] with the bias, h [..., 2, width] -> h'."""
    (a_f, a_o, a_c), (p_f, p_o), (x_f, x_o, x_c) = params["a"], params["p"], jnp.moveaxis(x, -2, 0)
    c, h = h[..., 0, :], h[..., 1, :]
    f = jax.nn.sigmoid(a_f * h + x_f + p_f * c)
    c = f * c + (1 - f) * nonlinearity(a_c * h + x_c)
    o = jax.nn.sigmoid(a_o * h + x_o + p_o * c)
    return jnp.stack([c, o * output_nonlinearity(c)], -2)


def fused(params, x, h0, **how):
    """The whole solver as one kernel: (states, residual)."""
    before = (None, None) if h0 is None else (h0[:, 0], h0[:, 1])
    states, residual = newton_lstm(x, params["a"], params["p"], *before, **how)
    return jnp.stack(states, -2), residual

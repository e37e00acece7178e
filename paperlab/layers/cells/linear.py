"""A linear recurrence with a gate of the input alone, the minGRU class: what ParaGRU is for a = 0 (arXiv 2510.21450, section 3).

h' = f h + (1 - f) c,  f = sigmoid(x_f) > 0,  c = x_c

Its coefficient is positive and does not look at the state, so no layer of it can count modulo two: the baseline of state tracking.
"""

import jax
import jax.numpy as jnp

STRUCTURE = "diagonal"
INPUTS = 2  # f, c
LINEAR = True


def init(key, width):
    """It has no recurrent weights."""
    return {}


def step(params, x, h):
    """x [..., 2, width], h [..., width] -> h'."""
    x_f, x_c = jnp.moveaxis(x, -2, 0)
    f = jax.nn.sigmoid(x_f)
    return f * h + (1 - f) * x_c

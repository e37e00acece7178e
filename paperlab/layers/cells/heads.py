"""One dense recurrence a head: states mix inside their head only, between a vector of weights and a full matrix.

h' = phi(W_head h + x)
"""

import jax
import jax.numpy as jnp

STRUCTURE = "heads"
INPUTS = 1


def init(key, width, heads):
    """W ~ N(0, 0.9^2 / size of a head), one a head."""
    size = width // heads
    return {"w": 0.9 * size**-0.5 * jax.random.normal(key, (heads, size, size))}


def step(params, x, h, nonlinearity=jnp.tanh):
    """x [..., 1, width], h [..., heads, width / heads] -> h'."""
    return nonlinearity(_inside(params, x, h))


def jacobian(params, x, h, nonlinearity=jnp.tanh):
    """phi'(...) W, row by row of every head."""
    return _slope(params, x, h, nonlinearity)[..., None] * params["w"]


def diagonal(params, x, h, nonlinearity=jnp.tanh):
    """What quasi-Newton methods take of it."""
    return _slope(params, x, h, nonlinearity) * jnp.diagonal(params["w"], axis1=-2, axis2=-1)


def _inside(params, x, h):
    return jnp.einsum("hij,...hj->...hi", params["w"], h) + x[..., 0, :].reshape(h.shape)


def _slope(params, x, h, nonlinearity):
    inside = _inside(params, x, h)
    return jax.jvp(nonlinearity, (inside,), (jnp.ones_like(inside),))[1]

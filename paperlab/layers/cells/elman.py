"""Elman's recurrence: every state reads every other, so the Jacobian is a full matrix (small widths only).

h' = phi(W h + x)
"""

import jax
import jax.numpy as jnp

STRUCTURE = "dense"
INPUTS = 1


def init(key, width):
    """W ~ N(0, 0.9^2 / width): its largest eigenvalue lies near 0.9, below where the recurrence grows chaotic."""
    return {"w": 0.9 * width**-0.5 * jax.random.normal(key, (width, width))}


def step(params, x, h, nonlinearity=jnp.tanh):
    """x [..., 1, width], h [..., width] -> h'."""
    return nonlinearity(_inside(params, x, h))


def jacobian(params, x, h, nonlinearity=jnp.tanh):
    """phi'(...) W, row by row: width^2 numbers, where automatic derivatives cost width^3 operations."""
    return _slope(params, x, h, nonlinearity)[..., None] * params["w"]


def diagonal(params, x, h, nonlinearity=jnp.tanh):
    """What quasi-Newton methods take of it."""
    return _slope(params, x, h, nonlinearity) * jnp.diagonal(params["w"])


def _inside(params, x, h):
    return h @ params["w"].T + x[..., 0, :]


def _slope(params, x, h, nonlinearity):
    inside = _inside(params, x, h)
    return jax.jvp(nonlinearity, (inside,), (jnp.ones_like(inside),))[1]

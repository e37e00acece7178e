"""The definition: one step after the other."""

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.scan.algebra import Algebra, Planes, add
from kernels_pallas.scan.groups import Group, grouped, invariant, planes


def forward(algebra: Algebra, a: Group, b: Group, h0: Planes, *, reverse: bool) -> tuple[Group, Planes]:
    """Runs h_t = a_t h_{t-1} + b_t (reverse: h_t = a_t h_{t+1} + b_t), in the dtype of h0.

    Args:
      a, b: groups; h0: planes [B, D].

    Returns:
      (h, last): h as b lies, last planes [B, D] in the dtype of h0.
    """
    wide = h0[0].dtype
    steps = tuple(_time_first(x.astype(wide)) for x in planes(b))
    fixed = tuple(x.astype(wide) for x in a) if invariant(a) else None
    varying = None if fixed else tuple(_time_first(x.astype(wide)) for x in planes(a))

    def step(h: Planes, now: tuple) -> tuple[Planes, Planes]:
        a, b = now
        h = add(algebra.act(fixed or a, h), b)
        return h, h

    last, h = lax.scan(step, h0, (varying, steps), reverse=reverse)
    return grouped(tuple(_time_first(x) for x in h), b), last


def _time_first(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)

"""The definition: node after node, a state DK x DV on every edge."""

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.plstm.core import Gates, Inputs, Results, node


def reference(x: Inputs) -> Results:
    """All nodes of a column, column after column."""
    arrays = [jnp.moveaxis(a.astype(x.left.dtype), (2, 3), (0, 1)) for a in x[:3]]
    per_node = Gates(*(jnp.moveaxis(g, (2, 3), (0, 1))[..., None, None] for g in x.gates))

    def column(lefts: Array, now: tuple) -> tuple[Array, tuple]:
        q, k, v, g, top = now

        def one(up: Array, now: tuple) -> tuple[Array, tuple]:
            q, k, v, g, left = now
            seen, right, down = node(g, left, up, k[..., :, None] * v[..., None, :])
            return down, (jnp.einsum("bhd,bhdv->bhv", q, seen), right)

        bottom, (out, rights) = lax.scan(one, top, (q, k, v, g, lefts))
        return rights, (out, bottom)

    rights, (out, bottoms) = lax.scan(
        column, jnp.moveaxis(x.left, 2, 0), (*arrays, per_node, jnp.moveaxis(x.top, 2, 0))
    )
    return Results(jnp.moveaxis(out, (0, 1), (2, 3)), jnp.moveaxis(rights, 0, 2), jnp.moveaxis(bottoms, 0, 2))

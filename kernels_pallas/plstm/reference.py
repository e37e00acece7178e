"""The definition: node after node, a state DK x DV on every edge."""

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.plstm.core import Gates, node


def reference(q: Array, k: Array, v: Array, gates: Gates, left: Array, top: Array) -> tuple[Array, Array, Array]:
    """(out [B,H,X,Y,DV], right [B,H,Y,DK,DV], bottom [B,H,X,DK,DV]), all in the dtype of the states, without a scale."""
    wide = left.dtype
    arrays = [jnp.moveaxis(x.astype(wide), (2, 3), (0, 1)) for x in (q, k, v)]
    per_node = Gates(*(jnp.moveaxis(g, (2, 3), (0, 1))[..., None, None] for g in gates))

    def column(lefts: Array, now: tuple) -> tuple[Array, tuple]:
        q, k, v, g, top = now

        def one(up: Array, now: tuple) -> tuple[Array, tuple]:
            q, k, v, g, left = now
            seen, right, down = node(g, left, up, k[..., :, None] * v[..., None, :])
            return down, (jnp.einsum("bhd,bhdv->bhv", q, seen), right)

        bottom, (out, rights) = lax.scan(one, top, (q, k, v, g, lefts))
        return rights, (out, bottom)

    rights, (out, bottoms) = lax.scan(column, jnp.moveaxis(left, 2, 0), (*arrays, per_node, jnp.moveaxis(top, 2, 0)))
    return jnp.moveaxis(out, (0, 1), (2, 3)), jnp.moveaxis(rights, 0, 2), jnp.moveaxis(bottoms, 0, 2)

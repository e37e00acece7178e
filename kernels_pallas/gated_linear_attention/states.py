"""The states between chunks: S_{n+1} = gamma_n * S_n + U_n, one after the other or as a tree.

One lax.scan step a chunk (sequential), or log N steps with the monoid (associative)

    (g1, U1) . (g2, U2) = (g1 g2, g2 U1 + U2)
"""

import jax.numpy as jnp
from jax import Array, lax


def sequential(gamma: Array, U: Array, S: Array, reverse: bool = False) -> tuple[Array, Array]:
    """gamma, U [N,...], S [...] -> (states before each chunk [N,...], last state); `reverse` runs from the end."""

    def body(S, chunk):
        gamma_n, U_n = chunk
        return gamma_n * S + U_n, S

    last, before = lax.scan(body, S, (gamma, U), reverse=reverse)
    return before, last


def associative(gamma: Array, U: Array, S: Array, reverse: bool = False) -> tuple[Array, Array]:
    """The same as a tree; the entering state is part of the first input."""
    if reverse:
        before, last = associative(gamma[::-1], U[::-1], S)
        return before[::-1], last
    U = U.at[0].add(gamma[0] * S)
    _, after = lax.associative_scan(_then, (gamma, U))
    return jnp.concatenate([S[None], after[:-1]]), after[-1]


def _then(earlier, later):
    (g1, U1), (g2, U2) = earlier, later
    return g1 * g2, g2 * U1 + U2

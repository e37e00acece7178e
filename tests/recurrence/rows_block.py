"""Rows of the law table: recurrences whose coefficient is a block or a matrix."""

from functools import partial

import jax
import jax.numpy as jnp

from paperlab.recurrence.block import block_scan
from tests.recurrence.laws import Law

B, N = 2, 3


def draw(T, seed, dtype, *, shape, structure):
    """Coefficients whose rows add up to less than one, so that states stay of one size over any length."""
    ka, kb, kh = jax.random.split(jax.random.key(seed), 3)
    square = (shape[0], *shape) if structure == "blocks" else (*shape, shape[-1])
    row = square[-2]
    A = jax.random.uniform(ka, (B, T, *square), jnp.float32, -1.0, 1.0) * (1.4 / row)
    b, h0 = jax.random.normal(kb, (B, T, *shape)), jax.random.normal(kh, (B, *shape))
    return {"A": A.astype(dtype), "b": b.astype(dtype), "h0": h0.astype(dtype)}


def run(args, *, structure, **options):
    return block_scan(args["A"], args["b"], args["h0"], structure=structure, chunk=16, **options)


def law(name, structure, shape, impls, lengths):
    return Law(
        f"block/{name}",
        partial(draw, shape=shape, structure=structure),
        partial(run, structure=structure),
        impls,
        ("A", "b"),
        lengths=lengths,
    )


# The orders of evaluation are one engine for all structures: each meets every law, "2x2" in both orders.
LAWS = [
    law("2x2", "blocks", (2, N), ("in_place", "associative", "chunked"), (1, 2, 63, 64, 1000)),
    law("heads", "heads", (2, N), ("chunked",), (2, 65)),
    law("dense", "dense", (N,), ("in_place", "associative"), (1, 3, 64)),
]

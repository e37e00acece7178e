"""Arguments for the scans below their public functions, and what they are compared with."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.scan import reference
from kernels_pallas.scan.algebra import BLOCK2, COMPLEX, REAL

ALGEBRAS = {"linear": REAL, "complex": COMPLEX, "block2": BLOCK2}


def draw(algebra, B, T, D, shared, dtype=jnp.float32, seed=0):
    """(a, b, h0, g, g_last). shared: 0: a differs at every step, 1: one for all, 2: one a sequence."""
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    n, m = algebra.states, algebra.coefficients

    def group(planes, draw):
        if algebra is BLOCK2:
            return (draw((B, T, planes, D)).astype(dtype),)
        return tuple(draw((B, T, D)).astype(dtype) for _ in range(planes))

    def coefficient(shape):
        return 0.9 * jax.random.uniform(next(keys), shape, minval=-0.4, maxval=0.6)

    def normal(shape):
        return jax.random.normal(next(keys), shape)

    if shared:
        a = tuple(coefficient((B if shared == 2 else 1, D)) for _ in range(m))
    else:
        a = group(m, coefficient)
    b, g = group(n, normal), group(n, normal)
    h0, g_last = (tuple(normal((B, D)) for _ in range(n)) for _ in range(2))
    return a, b, h0, g, g_last


def wanted(algebra, a, b, h0, g, g_last, reverse):
    """((h, last), (da, db, dh0)) by definition and automatic differentiation."""

    def run(a, b, h0):
        return reference.forward(algebra, a, b, h0, reverse=reverse)

    out, vjp = jax.vjp(jax.jit(run), a, b, h0)
    return out, vjp((g, g_last))


def assert_close(got, want, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        x, y = (np.asarray(v, np.float64) for v in (x, y))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.abs(y).max()))

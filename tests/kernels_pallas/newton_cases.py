"""What the tests of the Newton solvers share: arguments of both cells, and the recurrences under jit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.newton import newton_gru, newton_lstm
from kernels_pallas.newton.core import GRU, LSTM

OPS = {"gru": newton_gru, "lstm": newton_lstm}
CELLS = {"gru": GRU, "lstm": LSTM}
# Tests compile many small programs and run each once.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
STATES = {"gru": 1, "lstm": 2}


def arguments(cell, B, T, D, bound=0.5, dtype=np.float32, start=True, seed=0):
    """(x, a, h0) or (x, a, p, c0, h0) with recurrent weights in +-bound."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((B, T, 3, D)).astype(dtype)
    weights = [draw.uniform(-bound, bound, (n, D)).astype(dtype) for n in ((3,) if cell == "gru" else (3, 2))]
    states = [0.5 * draw.standard_normal((B, D)).astype(dtype) if start else None for _ in range(STATES[cell])]
    return (x, *weights, *states)


def solved(cell, arrays, **options):
    """(states [K, B, T, D], residual [B]) of a call under jit."""
    out, residual = compiled(partial(OPS[cell], **options))(*arrays)
    return np.stack(jax.tree.leaves(out)), np.asarray(residual)


def weighted(cell, arrays, seed=1, **options):
    """Gradients, with respect to every array, of a weighted sum of the states."""
    where = tuple(i for i, v in enumerate(arrays) if v is not None)

    def loss(*arrays):
        states = jax.tree.leaves(OPS[cell](*arrays, **options)[0])
        draw = np.random.default_rng(seed)
        return sum(jnp.sum(h * draw.standard_normal(h.shape).astype(h.dtype)) for h in states)

    return compiled(jax.grad(loss, where))(*arrays)


def close(got, want, atol):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=atol), got, want)

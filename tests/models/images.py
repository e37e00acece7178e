"""Images and drawn parameters for models of images, small enough to run in a test."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from tests.recurrence.laws import QUICK

IMAGES = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 6, 3)), jnp.float32)


@cache
def parameters(model):
    """Drawn without compiling `init`."""
    draw = np.random.default_rng(1).normal
    shapes = jax.eval_shape(model.init, jax.random.key(1), IMAGES[:1])
    return jax.tree.map(lambda a: 0.2 * draw(size=a.shape).astype(a.dtype), shapes)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def logits(model, params, x, rngs=None):
    """What a model says."""
    return model.apply(params, x, rngs=rngs)

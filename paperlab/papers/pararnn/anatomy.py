"""What Newton's method does to a sequence, position by position, and how far the layers of a trained model are from solved.

    course             iterates and residuals of one sequence: [iterations + 1, T, ...]
    structure          the mean size of every entry of a cell's state Jacobian, all of them: what its declaration leaves out is zero
    layer_residuals    the residual that so many iterations leave in every layer of a model, on given tokens
    dependent_steps    operations that must wait for each other, for one sequence

`notebooks/pararnn.ipynb` shows them; `pictures.py` draws them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from paperlab.discovery import find
from paperlab.layers.recurrent_cell import Recipe
from paperlab.recurrence import Cell, Solver, newton_solve, pictures
from paperlab.recurrence.newton import newton_iterates


class Course(NamedTuple):
    """states [iterations + 1, T, *state] and residuals [iterations + 1, T], the guess first; exact [T, *state], step by step."""

    states: Array
    residuals: Array
    exact: Array


@partial(jax.jit, static_argnums=(0, 3, 4))
def course(cell: Cell, params: Any, x: Array, iterations: int, solver: Solver | None = None) -> Course:
    """Solves one sequence x [T, inputs, width] and keeps everything on the way.

    Args:
      cell, params: of a recipe.
      x: what the step reads, bias included.
      iterations: how many.
      solver: method, damping and trust; Newton's if omitted.
    """
    states = newton_iterates(cell, params, x[None], iterations=iterations, solver=solver, axis=1)[0][:, 0]
    before = jnp.concatenate([jnp.zeros_like(states[:, :1]), states[:, :-1]], axis=1)
    off = jnp.abs(cell.step(params, jnp.broadcast_to(x, (iterations + 1, *x.shape)), before) - states)
    exact = newton_solve(cell, params, x[None], axis=1, impl="sequential").states[0]
    return Course(states, off.max(tuple(range(2, off.ndim))), exact)


def structure(made: Recipe, *, samples: int = 64, seed: int = 0) -> np.ndarray:
    """Mean |d h'_i / d h_j| [N, N] over random states and inputs, from full derivatives of the step: nothing declared is used.

    Entries of a state are in the order of its axes: all channels of the first variable (or the first head), then of the next.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    params = made.init(keys[0])
    x = jax.random.normal(keys[1], (samples, made.inputs, made.width))
    h = jax.random.normal(keys[2], (samples, *made.cell.state))
    J = jax.vmap(jax.jacfwd(lambda h, x: made.cell.step(params, x, h)))(h, x)
    size = int(np.prod(made.cell.state))
    return np.abs(np.asarray(J).reshape(samples, size, size)).mean(0)


def layer_residuals(config: Any, params: Any, tokens_BxT: Any, counts: Sequence[int]) -> np.ndarray:
    """[counts, layers]: the largest residual over rows and positions that so many Newton iterations leave in each pararnn layer.

    Args:
      config: resolved, of the run; its model is made anew with mode "parallel".
      params: of the model.
      tokens_BxT: what it reads.
      counts: numbers of iterations.

    Raises:
      ValueError: the model has no pararnn layer.
    """
    if "pararnn" not in config.mixers:
        raise ValueError("the model has no pararnn layer")
    return np.stack([_residuals(config, params, jnp.asarray(tokens_BxT), count) for count in counts])


def _residuals(config: Any, params: Any, tokens: Array, count: int) -> np.ndarray:
    changed = config.copy_and_resolve_references()
    changed.mixers.pararnn.update(mode="parallel", iterations=count, tolerance=0.0, relative=0.0)
    vocab = params["params"]["embedding"].shape[0]
    model = find("models", changed.model.name).make(changed, vocab)
    _, seen = jax.jit(partial(model.apply, mutable=["intermediates"]))(params, tokens)
    found = [
        np.asarray(leaf).max(-1).reshape(-1)  # [layers, B] of a stack, [B] of one layer
        for path, leaf in jax.tree_util.tree_leaves_with_path(seen)
        if any(getattr(key, "key", None) == "residual" for key in path)
    ]
    return np.concatenate(found)


def dependent_steps(T: int, iterations: int = 3) -> int:
    """Steps that wait for each other in the parallel form of T places, counted by running its order on symbols; step by step: T.

    An iteration evaluates every step at once and goes up and down the tree of an associative scan: about 2 log2 T levels.
    """
    return pictures.depth(partial(pictures.newton, iterations=iterations), T)

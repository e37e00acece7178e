"""One optimiser step: gradient accumulation, update, moving average, metrics. Pure.

    gradient = (sum over micro-batches and devices of d loss_sum / d params) / (sum over both of weight)

So the number of micro-batches and devices changes only the order of sums. Micro-batch m of M has rows m, m + M, m + 2M,
...: on a mesh every device keeps its own rows. The key of a step is fold_in(key, step), of its micro-batch
fold_in(that, m).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from paperlab.training import guard, paths
from paperlab.training.optimizer import Optimizer, merge, project, select
from paperlab.training.protocol import Batch, Metrics, Task, option
from paperlab.training.state import TrainState

Tree = Any
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
    task: Task,
    optimizer: Optimizer,
    *,
    micro_batches: int = 1,
    ema_decay: float = 0.0,
    rules: guard.Rules | None = None,
) -> TrainStep:
    """`train_step(state, batch, key, lr_scale=1.0) -> (state, metrics)`, to be jitted, scanned or vmapped.

    metrics: the task's (sum, weight) pairs, "loss", "grad_norm" (before clipping), "learning_rate"; "nonfinite": the
    number of entries of loss and gradient that are not finite; "nonfinite_parameters": the same of the parameters after
    the update; "spike": by how many deviations the loss stands above its running mean where that makes it a spike, else
    0. A step with any of these three changes nothing but the counts of steps and data. `rules` say what a spike is;
    without them none is.
    """
    watched = guard.Rules() if rules is None else rules
    gradient = make_gradient(task, optimizer, micro_batches)

    def train_step(state: TrainState, batch: Batch, key: jax.Array, lr_scale: Any = 1.0) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        grads, (loss, weight), metrics, task_state = gradient(state, batch, key)
        grad_norm = optax.tree.norm(grads)
        nonfinite = _count_if(~jnp.isfinite(grad_norm + loss), (grads, loss))
        params, opt_state, rate = update(optimizer, grads, state, lr_scale)
        broken = count_nonfinite(select(params, optimizer.trained))
        seen, counts, spike = guard.watch(state.guard, loss / weight, nonfinite + broken, watched)
        one = jnp.ones((), jnp.float32)
        own = {
            "grad_norm": (grad_norm, one),
            "learning_rate": (rate, one),
            "nonfinite": (nonfinite, one),
            "nonfinite_parameters": (broken, one),
            "spike": (spike, one),
            "discarded_in_a_row": (seen.row.astype(jnp.float32), one),
        }
        ema = move_average(state.ema, params, ema_decay, state.step)
        ema = None if ema is None else project(optimizer, ema)
        new = TrainState(state.step + 1, state.data_index + 1, params, task_state, opt_state, ema, seen)
        kept = state._replace(step=new.step, data_index=new.data_index, guard=seen)
        return guard.choose(counts, new, kept), {"loss": (loss, weight), **metrics, **own}

    return train_step


def make_gradient(task: Task, optimizer: Optimizer, micro_batches: int) -> Callable:
    """`gradient(state, batch, key) -> (grads of the trained leaves, (loss sum, weight), metrics, task state)`."""

    def loss(trained: Tree, frozen: Tree, task_state: Tree, batch: Batch, key: jax.Array, step: jax.Array) -> Any:
        total, weight, aux = task.loss(merge(trained, frozen), task_state, batch, key, step)
        return total, (jnp.asarray(weight, jnp.float32), aux["metrics"], aux["state"])

    def gradient(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        trained = select(state.params, optimizer.trained)
        rows, split_state = split_rows(task, state.state, micro_batches)

        def accumulate(carry: tuple, micro: tuple) -> tuple:
            grads, task_state = carry
            index, batch, rows = micro
            micro_key = jax.random.fold_in(key, index)
            (total, (weight, metrics, task_state)), new = jax.value_and_grad(loss, has_aux=True)(
                trained, state.params, merge(rows, task_state), batch, micro_key, state.step
            )
            grads = jax.tree.map(lambda old, g: old + g.astype(old.dtype), grads, new)
            return (grads, task_state), (total.astype(jnp.float32), weight, metrics, select(task_state, split_state))

        carry = (jax.tree.map(_zeros_float32, trained), _first_rows(state.state, rows))
        micro = (jnp.arange(micro_batches), split_batch(batch, micro_batches), rows)
        if micro_batches == 1:
            carry, sums = accumulate(carry, jax.tree.map(lambda x: x[0], micro))
            sums = jax.tree.map(lambda x: jnp.asarray(x)[None], sums)
        else:
            carry, sums = lax.scan(accumulate, carry, micro)
        totals, weights, metrics, new_rows = sums
        total, weight = totals.sum(), weights.sum()
        scale = 1 / jnp.where(weight > 0, weight, 1)
        grads = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), carry[0], trained)
        metrics = jax.tree.map(lambda x: x.astype(jnp.float32).sum(0), metrics)
        return grads, (total, weight), metrics, merge(join_rows(task, new_rows), carry[1])

    return gradient


def update(optimizer: Optimizer, grads: Tree, state: TrainState, lr_scale: Any) -> tuple[Tree, Tree, jax.Array]:
    """(new params, new opt_state, learning rate)."""
    trained = select(state.params, optimizer.trained)
    direction, opt_state = optimizer.direction.update(grads, state.opt_state, trained)
    rate = optimizer.schedule(state.step) * lr_scale
    multipliers = select(optimizer.multipliers, optimizer.trained)
    moved = jax.tree.map(lambda p, d, m: (p - rate * m * d).astype(p.dtype), trained, direction, multipliers)
    return project(optimizer, merge(moved, state.params)), opt_state, rate


def move_average(ema: Tree, params: Tree, decay: float, step: jax.Array) -> Tree:
    """ema <- d ema + (1 - d) params,  d = min(decay, (1 + step) / (10 + step)), so that short runs forget the start."""
    if ema is None:
        return None
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: (d * e + (1 - d) * p).astype(e.dtype), ema, params)


def count_nonfinite(tree: Tree) -> jax.Array:
    """Number of NaN and Inf entries, as float32 (a count that int32 could not hold need not be exact)."""
    return sum((~jnp.isfinite(leaf)).sum(dtype=jnp.float32) for leaf in jax.tree.leaves(tree))  # type: ignore[return-value]


def _count_if(suspect: jax.Array, tree: Tree) -> jax.Array:
    """`count_nonfinite` where `suspect` says that there may be any, else 0 at no cost."""
    return lax.cond(suspect, count_nonfinite, lambda _: jnp.zeros((), jnp.float32), tree)


def split_batch(batch: Batch, micro_batches: int) -> Batch:
    """[B, ...] -> [M, B/M, ...] where micro-batch m has rows m, m + M, ..."""
    return jax.tree.map(lambda x: _split(x, 0, micro_batches), batch)


def split_rows(task: Task, task_state: Tree, micro_batches: int) -> tuple[Tree, Tree]:
    """Leaves of `state` with one entry a row, split like the batch [M, ...] (None elsewhere), and which these are."""
    axis = row_axes(task, task_state)
    chosen = jax.tree.map(lambda a: a >= 0, axis)
    split = jax.tree.map(lambda a, x: _split(x, a, micro_batches) if a >= 0 else None, axis, task_state)
    return split, chosen


def join_rows(task: Task, rows: Tree) -> Tree:
    """The inverse of `split_rows` on its first result."""
    return jax.tree.map(_join, row_axes(task, rows), rows)


def row_axes(task: Task, task_state: Tree) -> Tree:
    """The axis of the rows in every leaf of `state`, -1 where it has none."""
    rules = [(paths.compile_rule(regex, "row_state"), axis) for regex, axis in option(task, "row_state", ())]

    def axis_of(name: str, _: Any) -> int:
        return next((axis for pattern, axis in rules if pattern.search(name)), -1)

    return paths.map_with_name(axis_of, task_state)


def _split(x: jax.Array, axis: int, parts: int) -> jax.Array:
    shape = (*x.shape[:axis], x.shape[axis] // parts, parts, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis + 1, 0)


def _join(axis: int, x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, 0, axis + 1)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _zeros_float32(leaf: jax.Array) -> jax.Array:
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))


def _first_rows(task_state: Tree, rows: Tree) -> Tree:
    return merge(jax.tree.map(lambda x: x[0], rows), task_state)

"""Several seeds of one small configuration, trained at once under one vmap of the trainer's own step.

Replica r is what `train` makes of `config` with seed `seeds[r]` (and learning rate `lrs[r]`): the same initialisation,
step, keys and data. All see the same batches unless `data="own"`, where replica r reads batches r, r + R, r + 2R, ...
of the task.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from paperlab.errors import ConfigError
from paperlab.training import setup
from paperlab.training.protocol import Task, derived
from paperlab.training.state import TrainState, evaluation_params
from paperlab.training.step import make_train_step


class Replicas(NamedTuple):
    """params, state: trees with a leading axis of replicas [R, ...] (params: the moving average where one is kept).

    metrics: {name: float64 [R, steps]} of every training step.
    evaluations: {step: {name: float64 [R]}} over the whole of each evaluated split, names `<split>_<metric>`.
    """

    params: Any
    state: Any
    metrics: dict[str, np.ndarray]
    evaluations: dict[int, dict[str, np.ndarray]]

    def final(self, name: str) -> np.ndarray:
        """[R], an evaluation metric at the last step."""
        return self.evaluations[max(self.evaluations)][name]

    def replica(self, r: int) -> Any:
        """The parameters of one replica."""
        return jax.tree.map(lambda x: x[r], self.params)


def train_replicas(
    task: Task,
    config: Any,
    seeds: Sequence[int],
    *,
    lrs: Sequence[float] | None = None,
    steps: int | None = None,
    evaluate: Sequence[str] = ("validation",),
    evaluate_every: int = 0,
    data: str = "shared",
    chunk: int = 50,
) -> Replicas:
    """Trains one replica a seed on one device.

    Args:
      lrs: a peak learning rate for each replica; config.optim.lr for all without it.
      steps: in place of config.train.steps, also for the schedule.
      evaluate: splits to evaluate, each whole, at the end.
      evaluate_every: and after every so many steps; 0 only at the end.
      data: "shared" (all replicas see the same batches) or "own".
      chunk: steps of one compiled scan.
    """
    steps = config.train.steps if steps is None else steps
    if data not in ("shared", "own"):
        raise ConfigError(f'data={data!r}: choose "shared" or "own"')
    if lrs is not None and len(lrs) != len(seeds):
        raise ConfigError(f"{len(lrs)} learning rates for {len(seeds)} seeds: give one for each")
    config = _with_steps(config, steps)
    dataset = task.data("train")
    stride = len(seeds) if data == "own" else 1
    first = dataset[0]
    _, optimizer = setup.abstract_state(config, task, first)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    states = jax.jit(jax.vmap(partial(setup.initial_state, config, task, optimizer), in_axes=(0, None)))(keys, first)
    scales = jnp.asarray([1.0] * len(seeds) if lrs is None else [lr / config.optim.lr for lr in lrs], jnp.float32)
    advance = _make_advance(task, config, optimizer, own=data == "own")
    score = _make_evaluation(task, evaluate)

    history: list[Any] = []
    evaluations: dict[int, dict[str, np.ndarray]] = {}
    done = 0
    while done < steps:
        stop = min(done + chunk, steps, *_next_multiple(done, evaluate_every))
        batches = _stack([dataset[i] for i in range(done * stride, stop * stride)], len(seeds) if data == "own" else 0)
        states, metrics = advance(states, batches, keys, scales)
        history.append(jax.device_get(metrics))
        done = stop
        if done == steps or (evaluate_every and done % evaluate_every == 0):
            evaluations[done] = score(states)
    params = evaluation_params(states)
    return Replicas(params, states.state, _means(history), evaluations)


def _with_steps(config: Any, steps: int) -> Any:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.steps = steps
    return config


def _next_multiple(done: int, every: int) -> tuple[int, ...]:
    return ((done // every + 1) * every,) if every else ()


def _make_advance(task: Task, config: Any, optimizer: Any, *, own: bool) -> Any:
    train = config.train
    step = make_train_step(task, optimizer, micro_batches=train.micro_batches, ema_decay=train.ema_decay)
    every = jax.vmap(step, in_axes=(0, 0 if own else None, 0, 0))

    @partial(jax.jit, donate_argnums=0)
    def advance(states: TrainState, batches: Any, keys: jax.Array, scales: jax.Array) -> tuple[TrainState, Any]:
        return lax.scan(lambda states, batch: every(states, batch, keys, scales), states, batches)

    return advance


def _make_evaluation(task: Task, splits: Sequence[str]) -> Any:
    @jax.jit
    def one(states: TrainState, batch: Any) -> Any:
        return jax.vmap(task.evaluate, in_axes=(0, 0, None))(evaluation_params(states), states.state, batch)

    def score(states: TrainState) -> dict[str, np.ndarray]:
        found = {}
        for split in splits:
            sums: dict[str, Any] = {}
            dataset = task.data(split)
            for i in range(len(dataset)):
                for name, (total, weight) in jax.device_get(one(states, dataset[i])).items():
                    old = sums.get(name, (0.0, 0.0))
                    sums[name] = (old[0] + np.asarray(total, np.float64), old[1] + np.asarray(weight, np.float64))
            found.update({f"{split}_{name}": values for name, values in _derive(task, sums).items()})
        return found

    return score


def _derive(task: Task, sums: dict[str, Any]) -> dict[str, np.ndarray]:
    means = {name: np.atleast_1d(total / weight) for name, (total, weight) in sums.items()}
    rows = [derived(task, dict(zip(means, row, strict=True))) for row in zip(*means.values(), strict=True)]
    return {name: np.asarray([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _stack(batches: list[Any], replicas: int) -> Any:
    """[steps, ...], or [steps, R, ...] where every replica has its own batches."""
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *batches)
    return jax.tree.map(lambda x: x.reshape(-1, replicas, *x.shape[1:]), stacked) if replicas else stacked


def _means(history: list[Any]) -> dict[str, np.ndarray]:
    def of(name: str) -> np.ndarray:
        total, weight = (np.concatenate([np.asarray(part[name][i], np.float64) for part in history]).T for i in (0, 1))
        return total / np.where(weight > 0, weight, np.nan)

    return {name: of(name) for name in (history[0] if history else {})}

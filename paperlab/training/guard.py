"""Which steps count: a step with a loss that is not finite, or far above what it has been, changes nothing. Pure.

    mean     <- mean + a (loss - mean)
    variance <- (1 - a) (variance + a (loss - mean)^2),      a = max(1 - decay, 1 / (accepted + 1))

over the losses of accepted steps: plain mean and variance at the start, a moving one later. A loss is a spike where

    loss > mean + spike * deviation,      deviation = max(sqrt(variance), |mean| / 1000)

once `warmup` steps were accepted. What happens then, beyond the step being discarded, is `config.faults.policy`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any


class Guard(NamedTuple):
    """What the run has seen of its own loss; part of the train state, so that a resumed run judges alike.

    accepted: int32 [], steps whose loss counts;  mean, variance: float32 [], of their losses.
    row: int32 [], steps discarded since the last accepted one.
    """

    accepted: Any
    mean: Any
    variance: Any
    row: Any


class Rules(NamedTuple):
    """spike: deviations above the mean (infinite: no loss is a spike); warmup: accepted steps; decay: of the mean."""

    spike: float = float("inf")
    warmup: int = 50
    decay: float = 0.98


def rules(faults: Any) -> Rules:
    """The rules of `config.faults`."""
    return Rules(faults.spike or float("inf"), faults.warmup, faults.decay)


def fresh() -> Guard:
    """Before the first step."""
    return Guard(
        accepted=jnp.zeros((), jnp.int32),
        mean=jnp.zeros((), jnp.float32),
        variance=jnp.zeros((), jnp.float32),
        row=jnp.zeros((), jnp.int32),
    )


def watch(guard: Guard, loss: Any, nonfinite: Any, rules: Rules) -> tuple[Guard, jax.Array, jax.Array]:
    """Judges one step.

    Args:
      loss: [], the mean loss of the step; NaN where its batch has no weight, which is no fault but teaches nothing.
      nonfinite: [], number of entries of loss sum, gradient and new parameters that are not finite.

    Returns:
      (the guard after the step, bool [] whether the step counts, float32 [] deviations above the mean: 0 for no spike).
    """
    deviation = jnp.maximum(jnp.sqrt(guard.variance), jnp.abs(guard.mean) / 1000)
    is_spike = (guard.accepted >= rules.warmup) & (loss > guard.mean + rules.spike * deviation)
    above = (loss - guard.mean) / jnp.maximum(deviation, jnp.finfo(jnp.float32).tiny)
    counts = (nonfinite == 0) & ~is_spike
    teaches = counts & jnp.isfinite(loss)
    part = jnp.maximum(1 - rules.decay, 1 / (guard.accepted + 1))
    difference = loss - guard.mean
    seen = Guard(
        accepted=guard.accepted + 1,
        mean=guard.mean + part * difference,
        variance=(1 - part) * (guard.variance + part * difference**2),
        row=guard.row,
    )
    guard = choose(teaches, seen, guard)
    return guard._replace(row=jnp.where(counts, 0, guard.row + 1)), counts, jnp.where(is_spike, above, 0.0)


def choose(condition: jax.Array, yes: Tree, no: Tree) -> Tree:
    """The leaves of `yes` where the scalar condition holds, else those of `no`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)

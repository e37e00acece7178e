"""Optimisers, schedules and rules on parameter paths.

    params <- params - lr(step) * multiplier(path) * (direction(clip(gradient)) + weight_decay * params)

`direction` is an optax transform without a learning rate, so that the rate can be logged, grouped by path, and differ
between replicas under vmap. Weight decay is decoupled for every optimiser but "adam", which has none. Frozen parameters
are taken out of the tree before differentiation: they have no gradient and no moments. "lamb" (arXiv 1904.00962) scales the
decayed direction of each layer to the norm of its parameters, those spared from decay left alone; layers that lie stacked on a
leading axis (`config.optim.stacked`, rules on paths) have a norm each. With `config.optim.project`, rules
"regex=bound", parameters are cut to -bound .. bound, entry by entry, after initialisation and after every update.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from paperlab.config import OPTIM
from paperlab.errors import ConfigError
from paperlab.limits import did_you_mean
from paperlab.training import paths

Tree = Any


class Optimizer(NamedTuple):
    """direction: optax transform over the trained leaves; schedule: step -> learning rate; trained: tree of bool;
    multipliers: tree of float, one a leaf; bounds: the same, inf where a leaf has none."""

    direction: optax.GradientTransformation
    schedule: Callable[[jax.Array], jax.Array]
    trained: Tree
    multipliers: Tree
    bounds: Tree


DIRECTIONS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adamw": lambda o: optax.scale_by_adam(o.b1, o.b2, o.eps),
    "adam": lambda o: optax.scale_by_adam(o.b1, o.b2, o.eps),
    "nadamw": lambda o: optax.scale_by_adam(o.b1, o.b2, o.eps, nesterov=True),
    "amsgrad": lambda o: optax.scale_by_amsgrad(o.b1, o.b2, o.eps),
    "radam": lambda o: optax.scale_by_radam(o.b1, o.b2, o.eps),
    "rmsprop": lambda o: optax.scale_by_rms(decay=o.b2, eps=o.eps),
    "adagrad": lambda o: optax.scale_by_rss(eps=o.eps),
    "lamb": lambda o: optax.scale_by_adam(o.b1, o.b2, o.eps),
    "lion": lambda o: optax.scale_by_lion(o.b1, o.b2),
    "sgd": lambda o: optax.identity(),
    "momentum": lambda o: optax.trace(decay=o.b1),
    "nesterov": lambda o: optax.trace(decay=o.b1, nesterov=True),
}


def make_optimizer(optim: Any, steps: int, params: Tree) -> Optimizer:
    """The optimiser of `config.optim` for a run of `steps` and parameters of these shapes.

    Raises:
      ConfigError: unknown name or schedule, a rule that is no regular expression or matches no parameter.
    """
    names = list(paths.flatten(params))
    frozen = _named(optim.freeze, names, "config.optim.freeze")
    if len(frozen) == len(names):
        raise ConfigError("config.optim.freeze: every parameter is frozen, nothing is left to train")
    trained = paths.map_with_name(lambda name, _: name not in frozen, params)
    direction = optax.chain(*_transforms(optim, names, select(params, trained)))
    multipliers = _numbers(optim.lr_groups, params, "lr_groups", "regex=multiplier", "embedding$=0.1", 1.0)
    bounds = _numbers(optim.project, params, "project", "regex=bound", "cell/a$=0.5", math.inf)
    held = [name for name, bound in paths.flatten(bounds).items() if bound < math.inf and name in frozen]
    if held:
        raise ConfigError(f"config.optim.project: {held[0]!r} is frozen by config.optim.freeze and can't be projected")
    return Optimizer(direction, make_schedule(optim, steps), trained, multipliers, bounds)


def check_names(optim: Any) -> None:
    """Raises ConfigError for an optimiser or a schedule that there is not."""
    for field, known in (("name", DIRECTIONS), ("schedule", _DECAYS)):
        if optim[field] not in known:
            raise ConfigError(f"config.optim.{field}={optim[field]!r}: {did_you_mean(optim[field], known)}")


def _transforms(optim: Any, names: list[str], trained: Tree) -> list[optax.GradientTransformation]:
    check_names(optim)
    default = OPTIM["decay_exclude"]
    spared = _named(optim.decay_exclude, names, "config.optim.decay_exclude", may_be_empty=default)
    transforms = [optax.clip_by_global_norm(optim.clip)] if optim.clip > 0 else []
    transforms.append(DIRECTIONS[optim.name](optim))
    if optim.weight_decay and optim.name != "adam":
        decayed = paths.map_with_name(lambda name, _: name not in spared, trained)
        transforms.append(optax.add_decayed_weights(optim.weight_decay, mask=decayed))
    if optim.name == "lamb":
        stacked = _named(optim.stacked, names, "config.optim.stacked", may_be_empty=OPTIM["stacked"])
        layers = paths.map_with_name(
            lambda name, _: "" if name in spared else "many" if name in stacked else "one", trained
        )
        transforms.append(_trust(layers))
    return transforms


def _trust(layers: Tree) -> optax.GradientTransformation:
    """A direction times |params| / |direction|: of the leaf ("one"), of each entry of its leading axis ("many"), or not ("")."""
    ratio = optax.scale_by_trust_ratio()

    def one(direction: jax.Array, params: jax.Array) -> jax.Array:
        return ratio.update(direction, ratio.init(params), params)[0]

    ways = {"": lambda direction, params: direction, "one": one, "many": jax.vmap(one)}

    def update(directions: Tree, state: optax.EmptyState, params: Tree) -> tuple[Tree, optax.EmptyState]:
        return jax.tree.map(lambda way, d, p: ways[way](d, p), layers, directions, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)  # type: ignore[arg-type]


def _named(rules: Any, names: list[str], field: str, may_be_empty: Any = ()) -> set[str]:
    found: set[str] = set()
    for rule in (rules,) if isinstance(rules, str) else rules:
        found |= paths.matches(rule, names, field, may_be_empty=rule in may_be_empty)
    return found


def _numbers(rules: Any, params: Tree, option: str, form: str, example: str, default: float) -> Tree:
    """A number for every leaf: the first rule "regex=number" that finds the path decides; `default` where none does."""
    names, field = list(paths.flatten(params)), f"config.optim.{option}"
    chosen: dict[str, float] = {}
    for text in (rules,) if isinstance(rules, str) else rules:
        rule, _, written = text.rpartition("=")
        try:
            number = float(written)
        except ValueError:
            number = math.nan
        if not rule or not number >= 0 or math.isinf(number):
            raise ConfigError(f"{field}: {text!r} is not of the form {form!r}, such as {example!r}")
        for name in paths.matches(rule, names, field):
            chosen.setdefault(name, number)
    return paths.map_with_name(lambda name, _: chosen.get(name, default), params)


def project(optimizer: Optimizer, params: Tree) -> Tree:
    """The nearest parameters within the bounds of `config.optim.project`."""
    return jax.tree.map(
        lambda p, bound: p if bound == math.inf else jnp.clip(p, -bound, bound), params, optimizer.bounds
    )


def make_schedule(optim: Any, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of step s = 0 .. steps - 1: a linear warm-up of W = round(warmup * steps) steps, then the decay.

        s <  W     lr * (start_lr + (1 - start_lr) (s + 1) / (W + 1))       no step has rate 0
        s >= W     lr * decay(p),  p = (s - W) / (steps - W),  from 1 at p = 0 towards final_lr at p = 1

    "rsqrt" decays as sqrt((W + 1) / (s + 1)), not below final_lr.
    """
    check_names(optim)
    warm = min(round(optim.warmup * steps), steps)
    decay, lr, start, final = _DECAYS[optim.schedule], optim.lr, optim.start_lr, optim.final_lr

    def schedule(step: jax.Array) -> jax.Array:
        s = jnp.asarray(step, jnp.float32)
        ramp = start + (1 - start) * (s + 1) / (warm + 1)
        progress = jnp.clip((s - warm) / max(steps - warm, 1), 0, 1)
        return lr * jnp.where(s < warm, ramp, decay(progress, s, warm, final))

    return schedule


_DECAYS: dict[str, Callable] = {
    "cosine": lambda p, s, warm, final: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * p)),
    "linear": lambda p, s, warm, final: 1 - (1 - final) * p,
    "constant": lambda p, s, warm, final: jnp.ones_like(p),
    "rsqrt": lambda p, s, warm, final: jnp.maximum(jnp.sqrt((warm + 1) / (jnp.maximum(s, warm) + 1)), final),
}


def select(tree: Tree, chosen: Tree) -> Tree:
    """The tree with None where `chosen` is False; jax sees only the rest."""
    return jax.tree.map(lambda keep, leaf: leaf if keep else None, chosen, tree)


def merge(selected: Tree, whole: Tree) -> Tree:
    """The inverse of `select`: leaves of `selected`, and of `whole` where `selected` has None."""
    return jax.tree.map(lambda a, b: b if a is None else a, selected, whole, is_leaf=lambda leaf: leaf is None)

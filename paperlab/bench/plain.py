"""The training step as one would write it by hand, in one place: what `overhead` compares the trainer with.

    loss = sum of weighted cross-entropies / sum of weights,   AdamW with a global clip, a warm-up and a cosine decay

The same model and the same optax pieces as the default run, nothing of paperlab's trainer: no rules on paths, no micro-batches, no
guard, no task. It returns what its author would print: loss, accuracy and the norm of the gradient.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Step = Callable[[Any, Any, Any], tuple[Any, Any, dict[str, jax.Array]]]


def transformation(config: Any) -> optax.GradientTransformation:
    """AdamW as `config.optim` describes it: no decay of biases and norms, clip, schedule of steps 0, 1, 2 ..."""
    optim, steps = config.optim, config.train.steps
    warm = round(optim.warmup * steps)
    spared = [re.compile(rule) for rule in optim.decay_exclude]

    def rate(step: Any) -> Any:
        ramp = (step + 1) / (warm + 1)
        progress = jnp.clip((step - warm) / max(steps - warm, 1), 0, 1)
        cosine = optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return optim.lr * jnp.where(step < warm, ramp, cosine)

    def decayed(params: Any) -> Any:
        def one(path: Any, _: Any) -> bool:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return not any(rule.search(name) for rule in spared)

        return jax.tree_util.tree_map_with_path(one, params)

    return optax.chain(
        optax.clip_by_global_norm(optim.clip),
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(rate),
    )


def make_step(model: Any, transform: optax.GradientTransformation) -> Step:
    """`step(params, moments, batch) -> (params, moments, {"loss", "accuracy", "grad_norm"})`, jitted, params and moments
    donated."""

    def loss_of(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        where = {"segment_ids": batch["segment_ids"], "positions": batch["positions"]}
        logits, _ = model.apply(params, batch["tokens"], **where)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        weight = batch["weights"].sum()
        right = (logits.argmax(-1) == batch["targets"]) * batch["weights"]
        return (nll * batch["weights"]).sum() / weight, right.sum() / weight

    def step(params: Any, moments: Any, batch: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        (loss, accuracy), grads = jax.value_and_grad(loss_of, has_aux=True)(params, batch)
        moves, moments = transform.update(grads, moments, params)
        found = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.tree.norm(grads)}
        return optax.apply_updates(params, moves), moments, found

    return jax.jit(step, donate_argnums=(0, 1))

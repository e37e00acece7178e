"""Sequence to sequence: a row of symbols in, another row out.

    loss = - sum_t w_t (1 - e) log p(y_t | y_<t, x) + e mean_v log p(v | ..)       e: label smoothing; teacher forcing

Accuracy counts symbols, `sequence_accuracy` whole rows, ends included. With `decode` evaluation also lets the model write on its
own, the most probable symbol each time, through its cache ("decoded_..."). Splits "length_N" are validation examples of N digits
and nothing else: how far a model goes beyond the lengths that it has seen.

`form="prefix"` puts source and targets into one row, with the loss on the targets alone: any language model takes the task then.
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.data.synthetic import algorithmic
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.limits import at_least, one_of, share
from paperlab.tasks._drawn import DrawnRows, check_splits, number_in, rngs_of

DEFAULTS = {
    "problem": "copy",
    "base": 10,
    "shortest": 1,
    "longest": 12,
    "form": "pair",
    "label_smoothing": 0.0,
    "decode": False,
    "validation_examples": 512,
}
LIMITS = {
    "problem": one_of(*algorithmic.PROBLEMS),
    "base": at_least(2),
    "shortest": at_least(1),
    "longest": at_least(1),
    "form": one_of("pair", "prefix", note="prefix: one row, for language models"),
    "label_smoothing": share(below=True),
    "validation_examples": at_least(1),
}
Metrics = dict[str, tuple[jax.Array, jax.Array]]


def make(config: Any) -> "SequenceToSequence":
    """The task that `config` describes."""
    return SequenceToSequence(config)


def check(config: Any) -> None:
    """Raises ConfigError for options that do not go together, and for evaluators of a split that there is not."""
    task = config.task
    algorithmic.check(task.problem, task.base, task.shortest, task.longest)
    if task.form == "prefix" and task.decode:
        raise ConfigError("config.task.decode=True needs config.task.form='pair': a model with an encoder")
    check_splits(config, "length")


class SequenceToSequence(DrawnRows):
    """Takes models of the contract of papers.universal_transformer.seq2seq, or of models.lm for `form="prefix"`."""

    def __init__(self, config: Any):
        self.config = config
        check(config)

    @property
    def vocab_size(self) -> int:
        return algorithmic.vocab_size(self.config.task.base)

    @cached_property
    def model(self) -> Any:
        made = find("models", self.config.model.name).make(self.config, self.vocab_size)
        wanted = "hidden" if self.config.task.form == "prefix" else "encode"
        if not hasattr(made, wanted):
            other = "pair" if wanted == "hidden" else "prefix"
            raise ConfigError(
                f"config.task.form={self.config.task.form!r}: config.model.name={self.config.model.name!r} does not take it;"
                f" say config.task.form={other!r}, or another model"
            )
        return made

    @property
    def tokens_per_batch(self) -> int:
        return self.config.data.batch_size * 2 * (self.config.task.longest + 1)

    def init(self, key: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Parameters, and an empty state."""
        first = {name: a[:1] for name, a in batch.items()}
        if self.config.task.form == "prefix":
            return self.model.init(key, first["tokens"]), {}
        return self.model.init(key, first["source"], first["inputs"]), {}

    def loss(
        self, params: Any, state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict]:
        """Sum of weighted losses in nats, sum of weights, and {metrics, state}.

        What a model adds ("extra_loss", or "losses" that a language model sows) goes to the mean loss, as its mean over rows.
        """
        del step
        logits, notes = self._forward(params, batch, rngs_of(key))
        metrics = {**self.metrics(logits, batch), **_pondered(notes, batch)}
        weight = batch["weights"]
        total = (_losses(logits, batch["targets"], self.config.task.label_smoothing) * weight).sum()
        if "extra_loss" in notes:
            total = total + jnp.mean(notes["extra_loss"]) * weight.sum()
        return total, weight.sum(), {"metrics": metrics, "state": state}

    def evaluate(self, params: Any, state: Any, batch: dict) -> Metrics:
        """(sum, weight) pairs of one batch."""
        del state
        logits, notes = self._forward(params, batch, None)
        found = {**self.metrics(logits, batch), **_pondered(notes, batch)}
        if self.config.task.decode:
            said = self.decode(params, batch["source"], batch["source_valid"], batch["targets"].shape[1])
            right = _accuracies(said == batch["targets"], batch["weights"])
            found |= {f"decoded_{name}": pair for name, pair in right.items()}
        return found

    def decode(self, params: Any, source_BxS: jax.Array, source_valid: jax.Array, length: int) -> jax.Array:
        """The most probable symbols, one after another, int32 [B, length]; padding after the end."""
        memory = self.model.apply(params, source_BxS, source_valid=source_valid, method="encode")
        rows = source_BxS.shape[0]
        start = (jnp.zeros(rows, jnp.int32), self.model.zero_state(memory, length), jnp.zeros(rows, bool))

        def one(carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
            token, state, ended = carry
            logits, state = self.model.apply(params, token, state, memory, jnp.broadcast_to(i, (rows,)), method="step")
            token = jnp.where(ended, algorithmic.PADDING, logits.argmax(-1).astype(jnp.int32))
            return (token, state, ended | (token == algorithmic.END)), token

        return jax.lax.scan(one, start, jnp.arange(length))[1].T

    def metrics(self, logits: jax.Array, batch: dict) -> Metrics:
        """Loss in nats a symbol (without smoothing), accuracy of symbols and of whole rows."""
        weights = batch["weights"]
        losses = _losses(logits, batch["targets"], 0.0)
        right = jax.lax.stop_gradient(logits).argmax(-1) == batch["targets"]
        return {"loss": ((losses * weights).sum(), weights.sum()), **_accuracies(right, weights)}

    def summary(self) -> dict[str, Any]:
        """What guessing would score."""
        return {"baselines": {"chance_accuracy": 1 / self.config.task.base}}

    def options(self, split: str) -> dict[str, int]:
        task, n = self.config.task, number_in(split, "length")
        if n is None:
            return {"shortest": task.shortest, "longest": task.longest}
        return {"shortest": min(task.shortest, n) if task.problem == "addition" else n, "longest": n}

    def examples(self, indices_B: np.ndarray, *, seed: int = 0, **options: Any) -> dict[str, np.ndarray]:
        task = self.config.task
        batch = algorithmic.examples(indices_B, seed=seed, problem=task.problem, base=task.base, **options)
        return _prefixed(batch) if task.form == "prefix" else batch

    def _forward(self, params: Any, batch: dict, rngs: dict | None) -> tuple[jax.Array, dict]:
        if self.config.task.form == "prefix":
            only = {} if rngs is None else {"dropout": rngs["dropout"]}
            (logits, _), sown = self.model.apply(params, batch["tokens"], rngs=only, mutable=["losses"])
            extra = [rows.mean() for rows in jax.tree.leaves(sown)]
            return logits, {"extra_loss": sum(extra)} if extra else {}
        return self.model.apply(
            params,
            batch["source"],
            batch["inputs"],
            source_valid=batch["source_valid"],
            target_valid=batch["weights"] > 0,
            train=rngs is not None,
            rngs=rngs or {},
        )


def _prefixed(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Source and targets in one row, each with its end; symbols of the targets are predicted from what stands before."""
    source, targets = batch["source"], batch["targets"]
    rows, width = len(source), source.shape[1] + targets.shape[1]
    tokens, wanted = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
    ends = batch["source_valid"].sum(1)
    for b, n in enumerate(ends):
        tokens[b, :n] = source[b, :n]
        size = int(batch["weights"][b].sum())
        tokens[b, n : n + size] = targets[b, :size]
        wanted[b, n - 1 : n - 1 + size] = targets[b, :size]
    return {"tokens": tokens, "targets": wanted, "weights": (wanted > 0).astype(np.float32)}


def _losses(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy with smoothed targets, [B, T]."""
    said = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    own = jnp.take_along_axis(said, targets[..., None], -1)[..., 0]
    return -((1 - smoothing) * own + smoothing * said.mean(-1))


def _accuracies(right: jax.Array, weights: jax.Array) -> Metrics:
    asked = weights > 0
    rows = asked.any(1)
    whole = (right | ~asked).all(1) & rows
    return {
        "accuracy": ((right * weights).sum(), weights.sum()),
        "sequence_accuracy": (whole.sum().astype(jnp.float32), rows.sum().astype(jnp.float32)),
    }


def _pondered(notes: dict, batch: dict) -> Metrics:
    """The mean steps of a symbol, where positions choose theirs."""
    there = {"encoder": batch.get("source_valid"), "decoder": batch["weights"] > 0}
    found = {}
    for side, n in notes.get("ponder", {}).items():
        mask = there[side]
        found[f"ponder_{side}"] = ((n * mask).sum(), mask.sum().astype(jnp.float32))
    return jax.tree.map(jax.lax.stop_gradient, found)

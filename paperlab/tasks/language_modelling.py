"""Language modelling: predict the next token of packed documents.

    loss = sum_t w_t (-log p(x_{t+1} | x_{<=t}, same document)) / sum_t w_t          nats a token

`w` is 0 at padding and where the target is the mark between two documents. Bits per byte divide the same sum by
ln 2 and by the UTF-8 bytes that the targets stand for, so it compares across tokenizers and with compressors.

`config.task.watch` names intermediates of the layers to report beside the loss, as means over rows and layers: "residual", how far
the states of a ParaRNN layer are from obeying its recurrence, and "iterations".

A model may add to the mean loss what it sows as "losses" (its `adds_to_loss` says so): the cost of pondering, say.

With `config.task.carry_state` the mixers' last state enters the next batch (truncated back-propagation through time): rows of
consecutive batches then continue each other (`config.data.order="contiguous"`), and no gradient crosses the border.
"""

import math
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paperlab.data import text
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.limits import at_least, did_you_mean

DEFAULTS = {
    "carry_state": False,
    "z_loss": 0.0,
    "watch": (),
}
LIMITS = {"z_loss": at_least(0)}

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def make(config: ConfigDict) -> "LanguageModelling":
    """The task that `config` describes; reads no data until some is asked for."""
    return LanguageModelling(config)


def check(config: ConfigDict) -> None:
    """Raises ConfigError for options that do not go together, and for evaluators of a split that there is not."""
    if config.task.carry_state and config.data.order != "contiguous":
        raise ConfigError(
            'config.task.carry_state=True needs config.data.order="contiguous": batches that continue each other'
        )
    for name, evaluator in config.get("evaluators", {}).items():
        split = evaluator.split
        if split != "validation":
            hint = "it never ends; choose validation" if split == "train" else did_you_mean(split, ["validation"])
            raise ConfigError(f"config.evaluators.{name}.split={split!r}: {hint}")


class LanguageModelling:
    """Next-token prediction with any model that maps tokens [B,T] to logits [B,T,V] and carries a state."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.carry_state = config.task.carry_state
        check(config)

    @cached_property
    def corpus(self) -> text.Corpus:
        return text.open_corpus(self.config.data)

    @cached_property
    def tokenizer(self) -> Any:
        return text.open_tokenizer_of(self.config.data)

    @cached_property
    def vocab_size(self) -> int:
        return text.vocab_size(self.config.data)

    @cached_property
    def model(self) -> Any:
        return find("models", self.config.model.name).make(self.config, self.vocab_size)

    @property
    def sharding(self) -> tuple:
        return self.model.sharding()

    row_state = ((r"^carry/", 1),)  # the models stack their layers before the rows

    @property
    def tokens_per_batch(self) -> int:
        return self.config.data.batch_size * self.config.data.sequence_length

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one global training batch, without opening the corpus."""
        shape = (self.config.data.batch_size, self.config.data.sequence_length)
        whole = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), jnp.int32)
        return {
            name: jax.ShapeDtypeStruct(shape, d)
            for name, d in {**whole, "weights": jnp.float32, "bytes": jnp.float32}.items()
        }

    def flops_per_batch(self, params: Any) -> float:
        """Model FLOPs of one training step, 6 per parameter and token (Kaplan et al. 2020); a table only looked up is left out."""
        once = find("models", self.config.model.name).matmul_parameters(params)
        again = getattr(self.model, "repeated_parameters", lambda params: 0)(params)
        return 6.0 * self.tokens_per_batch * (once + again)

    def init(self, key: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Parameters, and the carried state (an empty dict where none is carried)."""
        params = self.model.init(key, batch["tokens"][:1, :8])
        if not self.carry_state:
            return params, {}
        rows, length = batch["tokens"].shape
        return params, {"carry": self.model.zero_state(rows, length, jnp.dtype(self.config.model.dtype))}

    def loss(
        self, params: Any, state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict]:
        """Sum of weighted losses in nats, sum of weights, and {metrics, state}."""
        del step
        logits, carried, watched, extra = self._forward(params, batch, state.get("carry"), key)
        nll = _cross_entropy(logits, batch["targets"])
        weights = batch["weights"]
        total = (nll * weights).sum() + extra * weights.sum()
        metrics = {**self.metrics(logits, nll, batch), **watched}
        if self.config.task.z_loss:
            total = total + self.config.task.z_loss * (jax.nn.logsumexp(logits, axis=-1) ** 2 * weights).sum()
        state = {"carry": jax.lax.stop_gradient(carried)} if self.carry_state else state
        return total, weights.sum(), {"metrics": metrics, "state": state}

    def evaluate(self, params: Any, state: Any, batch: dict) -> Metrics:
        """(sum, weight) pairs of one batch: loss in nats a token, bits per byte, accuracy. Every row starts from a zero state."""
        del state
        logits, _, watched, _ = self._forward(params, batch, None, None)
        return {**self.metrics(logits, _cross_entropy(logits, batch["targets"]), batch), **watched}

    def metrics(self, logits: jax.Array, nll_BxT: jax.Array, batch: dict) -> Metrics:
        """(sum, weight) pairs of one batch."""
        weights = batch["weights"]
        total = (nll_BxT * weights).sum()
        right = _is_argmax(logits, batch["targets"]).astype(jnp.float32)
        return {
            "loss": (total, weights.sum()),
            "bits_per_byte": (total / math.log(2), (batch["bytes"] * weights).sum()),
            "accuracy": ((right * weights).sum(), weights.sum()),
        }

    def _forward(
        self, params: Any, batch: dict, carry: Any, key: jax.Array | None
    ) -> tuple[jax.Array, Any, Metrics, jax.Array | float]:
        """Logits, carry, what is watched, and what the model adds to the mean loss (0 in evaluation)."""
        rngs = {} if key is None else {"dropout": key}
        where = {"segment_ids": batch["segment_ids"], "positions": batch["positions"]}
        run = partial(self.model.apply, params, batch["tokens"], state=carry, rngs=rngs, **where)
        names = self.config.task.watch
        adds = key is not None and getattr(self.model, "adds_to_loss", False)
        if not names and not adds:
            return *run(), {}, 0.0
        (logits, carried), shown = run(mutable=["intermediates", "losses"])
        extra = sum(a.mean() for a in jax.tree.leaves(shown.pop("losses", {}))) if adds else 0.0
        watched = _watched(shown, (names,) if isinstance(names, str) else names) if names else {}
        return logits, carried, watched, extra

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        """Local batches as a grain MapDataset: endless for "train", one pass in reading order for the others."""
        data = self.config.data
        longest = len(self.corpus.split(split)) - 1
        if split == "train" and data.sequence_length > longest:
            raise ConfigError(
                f"config.data.sequence_length={data.sequence_length} is longer than the training split of "
                f"{self.corpus.source}: give at most {longest}, or more text"
            )
        return text.batches(
            self.corpus,
            split,
            sequence_length=data.sequence_length,
            batch_size=data.batch_size,
            order=data.order,
            seed=data.shuffle_seed,
            process_index=process_index,
            process_count=process_count,
        )

    def summary(self) -> dict[str, Any]:
        """The corpus (bytes, sha256) and what simple models and compressors reach on the same validation bytes."""
        from paperlab.data import baselines

        return {"corpus": self.corpus.summary(), "baselines": baselines.baselines(self.corpus)}

    def show(self, params: Any, state: Any, workdir: Path) -> dict[str, Any]:
        """Writes `samples.txt`: continuations of the first validation bytes and of nothing, and the tokenizer beside it."""
        del state
        from paperlab.decoding import generate

        length = min(200, 2 * self.config.data.sequence_length)
        prompts = {
            "begin of a document": [self.tokenizer.bos],
            "def ": [self.tokenizer.bos, *self.tokenizer.encode("def ")],
        }
        pieces = []
        for name, prompt in prompts.items():
            tokens = generate(
                self.model, params, jnp.asarray([prompt]), length, jax.random.key(0), temperature=0.8, top_k=40
            )
            pieces.append(f"--- {name}\n{self.tokenizer.decode(np.asarray(tokens[0]).tolist())}\n")
        (workdir / "samples.txt").write_text("\n".join(pieces), encoding="utf-8")
        return {"samples": "samples.txt"}


def _watched(shown: Any, names: Sequence[str]) -> Metrics:
    """Sums and numbers of entries of the intermediates of these names, over all layers."""
    leaves: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shown):
        key = next((part.key for part in reversed(path) if isinstance(part, jax.tree_util.DictKey)), "")
        leaves.setdefault(key, []).append(jax.lax.stop_gradient(leaf).astype(jnp.float32))
    missing = [name for name in names if name not in leaves]
    if missing:
        known = ", ".join(sorted(leaves)) or "none at all"
        raise ConfigError(f"config.task.watch={missing[0]!r}: no layer of this model shows it; there are {known}")
    whole = {name: jnp.concatenate([a.reshape(-1) for a in leaves[name]]) for name in names}
    return {name: (a.sum(), jnp.asarray(a.size, jnp.float32)) for name, a in whole.items()}


def _cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    logits = logits_BxTxV.astype(jnp.promote_types(logits_BxTxV.dtype, jnp.float32))
    chosen = jnp.take_along_axis(logits, targets_BxT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _is_argmax(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    """Is the target the first of the largest logits? XLA vectorises this on a CPU; `argmax` takes three times as long."""
    logits, targets = jax.lax.stop_gradient(logits_BxTxV), targets_BxT[..., None]
    largest = logits == logits.max(-1, keepdims=True)
    earlier = jnp.arange(logits.shape[-1]) < targets
    return jnp.take_along_axis(largest, targets, axis=-1)[..., 0] & ~(largest & earlier).any(-1)

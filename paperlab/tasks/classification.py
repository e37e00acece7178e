"""Classification of images: one label an image, hard or mixed, over any number of evaluated splits.

    softmax   l = - sum_c t_c log p_c                                  p = softmax(logits)
    binary    l = - mean_c (u_c log s_c + (1 - u_c) log(1 - s_c))      s = sigmoid(logits)

t: the share of each class in the image (mixtures have two), smoothed: (1 - a) t + a / classes. u = t, or with `hard_targets` 1
for every class that the image holds any of (DeiT III's form of the binary loss). Metrics: loss, accuracy (top-1) and, from 6
classes on, top5_accuracy; a mixture counts as its larger part.

The model is any file that `config.model.name` finds: `make(config, classes)` gives a flax module from images [B, X, Y, C]
(normalised, float) to logits [B, classes]. Where it keeps statistics in further collections, they are the task's state, and its
`__call__` says by an argument `train` when to gather them. An rng "dropout" is given in training.
"""

import inspect
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paperlab.data import images
from paperlab.discovery import find
from paperlab.limits import at_least, one_of, share
from paperlab.training.flops import count_flops

DATA = "paperlab.data.images"
DEFAULTS = {
    "loss": "softmax",
    "hard_targets": True,
    "label_smoothing": 0.0,
    "init_size": 0,  # side of the images that the model is made for: its position table; 0: those of training
}
LIMITS = {
    "loss": one_of("softmax", "binary"),
    "label_smoothing": share(below=True),
    "init_size": at_least(1, "0: as in training", also=(0,)),
}
TOP = 5
SHOWN = 8  # batches of a split in which right and wrong predictions are looked for

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def make(config: ConfigDict) -> "Classification":
    """The task that `config` describes; reads no data until some is asked for."""
    return Classification(config)


class Classification:
    """Labels of images by any model that maps [B, X, Y, C] to logits."""

    def __init__(self, config: ConfigDict):
        self.config = config

    @cached_property
    def images(self) -> images.Images:
        return images.Images(self.config.data)

    @cached_property
    def model(self) -> Any:
        return find("models", self.config.model.name).make(self.config, self.images.classes)

    @property
    def sharding(self) -> tuple:
        return self.model.sharding() if hasattr(self.model, "sharding") else ()

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one global training batch, without opening the data."""
        shape, dtype = images.spec(self.config.data)
        rows = {"labels": jnp.int32, "partners": jnp.int32, "shares": jnp.float32, "weights": jnp.float32}
        spec = {name: jax.ShapeDtypeStruct(shape[:1], d) for name, d in rows.items()}
        return {"images": jax.ShapeDtypeStruct(shape, dtype), **spec}

    def flops_per_batch(self, params: Any) -> float:
        """Model FLOPs of one training step: three times those of the forward pass."""
        shape, _ = images.spec(self.config.data)
        if hasattr(self.model, "forward_flops"):
            return 3.0 * self.model.forward_flops(params, shape)
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), x)
        return 3.0 * count_flops(jax.make_jaxpr(self.model.apply)(shapes, x))

    def init(self, key: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Parameters, and the further collections of the model (an empty dict where it has none)."""
        _, X, Y, C = batch["images"].shape
        side = self.config.task.init_size
        variables = dict(self.model.init(key, jnp.zeros((1, side or X, side or Y, C))))
        return {"params": variables.pop("params")}, variables

    def loss(
        self, params: Any, state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict]:
        """Sum of weighted losses, sum of weights, and {metrics, state}."""
        del step
        logits, state = self.forward(params, state, batch["images"], key)
        metrics = self.metrics(logits, batch)
        total, weight = metrics["loss"]
        return total, weight, {"metrics": metrics, "state": state}

    def forward(self, params: Any, state: Any, images_BxXxYxC: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        """Logits in training, and the model's collections after it."""
        options = {**self._mode(True), "rngs": {"dropout": key}}
        x = self.normalised(images_BxXxYxC)
        if not state:
            return self.model.apply(params, x, **options), state
        return self.model.apply({**params, **state}, x, mutable=list(state), **options)

    def evaluate(self, params: Any, state: Any, batch: dict) -> Metrics:
        """(sum, weight) pairs of one batch."""
        return self.metrics(self.logits(params, state, batch["images"]), batch)

    def logits(self, params: Any, state: Any, images_BxXxYxC: jax.Array) -> jax.Array:
        """What the model says to images as they come in a batch, [B, classes]."""
        return self.model.apply({**params, **state}, self.normalised(images_BxXxYxC), **self._mode(False))

    def _mode(self, train: bool) -> dict[str, bool]:
        return {"train": train} if "train" in inspect.signature(type(self.model).__call__).parameters else {}

    def normalised(self, x: jax.Array) -> jax.Array:
        """uint8 images by the mean and deviation of the data section, float32; floats as they are."""
        if x.dtype != jnp.uint8:
            return x
        mean, deviation = images.statistics(self.config.data)
        return (x.astype(jnp.float32) / 255 - mean) / deviation

    def targets(self, batch: dict, classes: int) -> jax.Array:
        """t of the module's text, float32 [B, classes]."""
        shares = batch["shares"][:, None]
        one_hot = (jax.nn.one_hot(batch[name], classes) for name in ("labels", "partners"))
        own, partner = one_hot
        t = shares * own + (1 - shares) * partner
        if self.config.task.loss == "binary" and self.config.task.hard_targets:
            t = (t > 0).astype(jnp.float32)
        smoothing = self.config.task.label_smoothing
        return (1 - smoothing) * t + smoothing / classes

    def metrics(self, logits_BxK: jax.Array, batch: dict) -> Metrics:
        """(sum, weight) pairs of one batch: loss, accuracy, and top5_accuracy where that says anything."""
        logits = logits_BxK.astype(jnp.promote_types(logits_BxK.dtype, jnp.float32))
        classes, weights = logits.shape[-1], batch["weights"]
        t = self.targets(batch, classes)
        if self.config.task.loss == "binary":
            losses = (jax.nn.softplus(logits) - t * logits).mean(-1)
        else:
            losses = -(t * jax.nn.log_softmax(logits)).sum(-1)
        label = jnp.where(batch["shares"] >= 0.5, batch["labels"], batch["partners"])
        rank = _rank(logits, label)
        found = {"loss": losses, "accuracy": rank < 1} | ({"top5_accuracy": rank < TOP} if classes > TOP else {})
        return {name: ((values * weights).sum(), weights.sum()) for name, values in found.items()}

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        """Local batches as a grain MapDataset: endless for "train", one pass for the others."""
        return self.images.batches(split, process_index, process_count)

    def summary(self) -> dict[str, Any]:
        """Sizes of the splits, and what simple classifiers reach on the same validation images."""
        source, data = self.images.source, self.config.data
        names = ("train", *dict.fromkeys(one.split for one in self.config.evaluators.values()))
        sizes = {name: source.count(name) for name in names}
        shown = {name: count if count < 2**53 else "endless" for name, count in sizes.items()}
        return {"images": {"source": data.source, "examples": shown}, "baselines": source.baselines()}

    def show(self, params: Any, state: Any, workdir: Path) -> dict[str, Any]:
        """Writes `predictions.png`: some images of each evaluated split with what the model says, wrong ones marked."""
        from paperlab.tasks._predictions import draw

        splits = list(dict.fromkeys(one.split for one in self.config.evaluators.values()))
        if not splits:
            return {}
        probabilities = jax.jit(lambda x: jax.nn.softmax(self.logits(params, state, x)))
        rows: dict[str, Any] = {}
        for split in splits:
            found = []
            for batch in self.data(split)[:SHOWN]:
                said = np.asarray(probabilities(batch["images"]))
                found.append((batch["images"], batch["labels"], said, batch["weights"]))
            rows[split] = tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
        source = self.images.source
        draw(rows, source.class_names, workdir / "predictions.png", getattr(source, "picture", lambda image: image))
        return {"predictions": "predictions.png"}


def _rank(logits_BxK: jax.Array, label_B: jax.Array) -> jax.Array:
    """How many classes come before the label: larger logits, and equal ones of smaller number. [B]"""
    logits = jax.lax.stop_gradient(logits_BxK)
    own = jnp.take_along_axis(logits, label_B[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1]) < label_B[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(-1)

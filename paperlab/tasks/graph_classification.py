"""Classification of graphs: cross-entropy over classes, every graph with the same weight.

Models take a batch of unions (paperlab.data.wiring) and give logits [rows, graphs, classes].
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paperlab.data import graphs
from paperlab.discovery import find
from paperlab.limits import share

DATA = "paperlab.data.graphs"
DEFAULTS = {"label_smoothing": 0.0}
LIMITS = {"label_smoothing": share(below=True)}

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def make(config: ConfigDict) -> "GraphClassification":
    """The task that `config` describes; reads no data until some is asked for."""
    return GraphClassification(config)


def rows_of(config: ConfigDict) -> int:
    """Unions of a batch: what the config says, or one for each part of the mesh and each micro-batch."""
    if config.data.rows:
        return config.data.rows
    mesh = config.mesh
    data = mesh.data if mesh.data > 0 else max(jax.device_count() // (mesh.fsdp * mesh.tensor), 1)
    wanted = data * mesh.fsdp * config.train.micro_batches
    return wanted if config.data.batch_size % wanted == 0 else 1  # the mesh says what is wrong


class GraphClassification:
    """One class a graph."""

    def __init__(self, config: ConfigDict):
        graphs.check(config)
        self.config = config

    @cached_property
    def rows(self) -> int:
        return rows_of(self.config)

    @cached_property
    def collection(self) -> graphs.Graphs:
        return graphs.open_graphs(self.config.data, self.rows)

    @cached_property
    def features(self) -> graphs.Features:
        """Columns of nodes and edges, classes, edges of a node."""
        data = self.config.data
        return graphs.nominal(data, self.rows)[0] if graphs.absent(data) else self.collection.features

    @cached_property
    def model(self) -> Any:
        return find("models", self.config.model.name).make(self.config, self.features)

    @property
    def sharding(self) -> tuple:
        return self.model.sharding()

    @property
    def examples_per_batch(self) -> int:
        """Graphs, several of which are one row."""
        return self.config.data.batch_size

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one global training batch."""
        data = self.config.data
        room = graphs.nominal(data, self.rows)[1] if graphs.absent(data) else self.collection.sizes["train"]
        shapes = graphs.batch_shapes(self.rows, room, self.features)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}

    def init(self, key: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Parameters; there is no other state."""
        return self.model.init(key, jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), dict(batch))), {}

    def loss(
        self, params: Any, state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict]:
        """Sum of losses in nats, number of graphs, and {metrics, state}."""
        del step
        logits = self.model.apply(params, batch, rngs={"dropout": key})
        metrics = self.metrics(logits, batch)
        total, weight = metrics["loss"]
        if smoothing := self.config.task.label_smoothing:
            even = -jax.nn.log_softmax(logits).mean(-1)
            total = (1 - smoothing) * total + smoothing * (even * batch["weights"]).sum()
        return total, weight, {"metrics": metrics, "state": state}

    def evaluate(self, params: Any, state: Any, batch: dict) -> Metrics:
        """(sum, weight) pairs of one batch: loss in nats a graph, accuracy."""
        del state
        return self.metrics(self.model.apply(params, batch), batch)

    def metrics(self, logits: jax.Array, batch: dict) -> Metrics:
        """(sum, weight) pairs."""
        labels, weights = batch["labels"], batch["weights"]
        chosen = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
        nll = jax.nn.logsumexp(logits, -1) - chosen
        right = (logits.argmax(-1) == labels).astype(jnp.float32)
        return {
            "loss": ((nll * weights).sum(), weights.sum()),
            "accuracy": ((right * weights).sum(), weights.sum()),
        }

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        """Local rows of the batches of a split: endless for "train", else one pass."""
        return self.collection.batches(split, process_index, process_count)

    def summary(self) -> dict[str, Any]:
        """The set, and what always saying its most frequent class would reach."""
        counts = np.bincount([graph.label for graph in self.collection.splits["train"]])
        often = int(counts.argmax())
        test = self.collection.splits["test"]
        return {
            "graphs": {name: len(some) for name, some in self.collection.splits.items()},
            "features": self.features._asdict(),
            "steps_of_an_epoch": self.collection.steps_of_epoch(),
            "baselines": {"most_frequent_class_accuracy": sum(g.label == often for g in test) / len(test)},
        }

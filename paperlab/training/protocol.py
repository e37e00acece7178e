"""What the trainer asks of a task: the only thing it knows about models, data and papers.

    loss     -> (sum, weight, aux)          the trainer minimises  sum over everything / weight over everything
    metric   =  (sum, weight)               reported as sum / weight, exact over micro-batches, batches and devices

A batch is a dict of arrays whose first axis is the row. Gradients never touch `state`: it holds batch statistics,
router biases, a recurrence carried across segments, a curriculum; it is threaded through micro-batches, saved and
sharded.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

Tree = Any
Batch = dict[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
ShardingRules = tuple[tuple[str, tuple], ...]


@runtime_checkable
class Task(Protocol):
    """The required part. The optional part, read by `option`, is:

    sharding: ((regex on the parameter path, mesh axes of the trailing dimensions), ...)
    row_state: ((regex on the path in `state`, axis of the rows), ...): leaves of `state` that hold one entry for each
        row of the batch; micro-batches take their own rows, and the rows are sharded like the batch
    tokens_per_batch: int, for throughput;  flops_per_batch(params) -> float, for the model FLOPs utilisation
    examples_per_batch: int, for throughput where a row of the batch holds several examples
    batch_spec() -> {name: jax.ShapeDtypeStruct} of one global batch, so that a dry run reads no data
    derive({name: float}) -> {name: float}: further numbers from the reported ones, such as perplexity
    summary() -> dict of what is known without training;  show(params, state, workdir) -> dict after it
    """

    def init(self, key: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """(params, state) for global batches of this shape."""
        ...

    def loss(self, params: Tree, state: Tree, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Any, dict]:
        """(sum, weight, {"metrics": Metrics, "state": state}). A penalty that shall not depend on the weight is added
        times the weight."""
        ...

    def evaluate(self, params: Tree, state: Tree, batch: Batch) -> Metrics:
        """(sum, weight) pairs of one batch."""
        ...

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        """grain.MapDataset of this process's rows of every global batch; endless for "train", else finite."""
        ...


def option(task: Any, name: str, default: Any = None) -> Any:
    """An optional attribute or method of a task."""
    return getattr(task, name, default)


def derived(task: Any, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics with what the task derives from them."""
    derive: Callable | None = option(task, "derive")
    return {**metrics, **derive(metrics)} if derive else metrics

"""From a task's local batches to global arrays on the mesh, read ahead by threads.

Batch i is a function of i alone, so a run resumes from one integer, on any number of processes.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from paperlab import distributed
from paperlab.training.mesh import batch_sharding, process_share
from paperlab.training.protocol import Batch, Task

READ_AHEAD = 2  # batches that wait on the devices


def open_split(task: Task, split: str, mesh: Mesh) -> Any:
    """The MapDataset of this process's share of a split.

    Process 0 opens it first: what is slow to make and then kept (tokens, downloads) is made once where the others see it.
    """
    index, count = process_share(mesh)
    if distributed.process():
        distributed.gather()
    dataset = task.data(split, index, count)
    if not distributed.process():
        distributed.gather()
    return dataset


def global_batches(dataset: Any, mesh: Mesh, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
    """Batches start, start + 1, ... as global arrays; the next ones are read and sent while the caller computes."""
    import grain

    chosen = dataset[start:stop]
    if len(chosen) == 0:
        return
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    waiting: deque[Batch] = deque()
    for local in chosen.to_iter_dataset(options):
        waiting.append(to_global(local, mesh))
        if len(waiting) > READ_AHEAD:
            yield waiting.popleft()
    yield from waiting


def to_global(local: Batch, mesh: Mesh) -> Batch:
    """This process's rows as its part of global arrays; a short batch that does not divide is copied to all devices."""
    count = process_share(mesh)[1]
    sharding = batch_sharding(mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def where(x: Any) -> NamedSharding:
        return sharding if x.shape[0] * count % shards == 0 else NamedSharding(mesh, P())

    if jax.process_count() == 1:
        return jax.device_put(local, jax.tree.map(where, local))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(where(x), x, (x.shape[0] * count, *x.shape[1:])), local
    )


def batch_spec(task: Task, mesh: Mesh) -> Batch:
    """Shapes and shardings of one global training batch, from the task's `batch_spec` or else from its first batch."""
    given = getattr(task, "batch_spec", None)
    if given is not None:
        shapes = given()
    else:
        count = process_share(mesh)[1]
        first = open_split(task, "train", mesh)[0]
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * count, *x.shape[1:]), x.dtype), first)
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

"""Where activations live on a mesh: rows over the axes that split the batch, everything else as the compiler finds best.

Parameters are placed from outside, by rules on their paths. With fully sharded parameters the compiler would otherwise sometimes
spread an activation's channels over the axis that should split its rows, and move whole activations at every layer.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, PartitionSpec

ROW_AXES = ("data", "fsdp")


def constrain_rows(x: Array) -> Array:
    """Keeps the leading axis of x [B, ...] split over those of "data" and "fsdp" that the mesh in use has; no mesh, no change."""
    axes, ways = _row_axes()
    if ways == 1 or x.shape[0] % ways:
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *free))


def by_rows(f: Callable[..., Any], *trees: Any) -> Any:
    """f(*trees) with every device at its own rows: for kernels, which XLA can't split.

    trees: arrays [B, ...] of three axes or more, or of integers; arrays without rows are to be bound to f. Results have rows too.
    Where no mesh splits rows, or they do not divide, this is f(*trees).
    """
    axes, ways = _row_axes()
    leaves = jax.tree.leaves(trees)
    if ways == 1 or any(x.shape[0] % ways for x in leaves):
        return f(*trees)
    rows = PartitionSpec(axes)
    return jax.shard_map(f, in_specs=rows, out_specs=rows, axis_names=set(axes), check_vma=False)(*trees)


def _row_axes() -> tuple[tuple[str, ...], int]:
    """The axes of the mesh in use that may split rows, and into how many parts they do."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if name in ROW_AXES and kind == AxisType.Auto)
    return axes, prod(mesh.shape[name] for name in axes)

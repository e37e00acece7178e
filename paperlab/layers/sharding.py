"""Where activations live on a mesh: rows over the axes that split the batch, everything else as the compiler finds best.

Parameters are placed from outside, by rules on their paths. With fully sharded parameters the compiler would otherwise sometimes
spread an activation's channels over the axis that should split its rows, and move whole activations at every layer.
"""

import jax
from jax import Array
from jax.sharding import AxisType, PartitionSpec

ROW_AXES = ("data", "fsdp")


def constrain_rows(x: Array) -> Array:
    """Keeps the leading axis of x [B, ...] split over those of "data" and "fsdp" that the mesh in use has; no mesh, no change."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if name in ROW_AXES and kind == AxisType.Auto
    )
    ways = 1
    for name in axes:
        ways *= mesh.shape[name]
    if ways == 1 or x.shape[0] % ways:
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *free))

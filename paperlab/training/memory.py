"""What a run needs on every device, said before step 0, and refused where it cannot fit.

    needed = arguments + outputs - outputs that reuse arguments + temporaries        bytes of the compiled step on one device

The state is weighed from its shapes, before anything is allocated; the step when it is compiled. Against it stands what the
device says it has; on a CPU the machine's memory, or the limit of its control group, shared by the devices of the process.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from paperlab.devices import memory_of
from paperlab.errors import ConfigError

Tree = Any

STATE_CURE = "raise config.mesh.fsdp or config.mesh.tensor over more devices, or make the model smaller"
STEP_CURE = (
    "lower config.data.batch_size, raise config.train.micro_batches or config.mesh.fsdp, or set config.model.remat where "
    "the model has it"
)


class StepMemory(NamedTuple):
    """Bytes of a compiled step on one device: what it is given, what it needs besides, and all of it."""

    arguments: int
    temporaries: int
    total: int


def of_step(compiled: jax.stages.Compiled) -> StepMemory:
    """What the compiler says of a program; zeros where it says nothing."""
    memory: Any = compiled.memory_analysis()
    if memory is None:
        return StepMemory(0, 0, 0)
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    total = arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return StepMemory(arguments, temporaries, total)


def local_bytes(tree: Tree) -> int:
    """Bytes that one device holds of a tree of placed shapes."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def device_limit(device: jax.Device) -> int:
    """Bytes that one device can hold; 0 where nobody says."""
    return memory_of(device) // (jax.local_device_count() if device.platform == "cpu" else 1)


def refuse_state(shapes: Any, mesh: Any, *, limit: int | None = None) -> None:
    """Raises ConfigError where the state alone (a TrainState of placed shapes) is larger than a device."""
    limit = _limit(mesh) if limit is None else limit
    needed = local_bytes(shapes)
    if limit and needed > limit:
        raise ConfigError(
            f"config.model: the state needs {gigabytes(needed)} on a device that has {gigabytes(limit)} (parameters "
            f"{gigabytes(local_bytes(shapes.params))}, optimiser {gigabytes(local_bytes(shapes.opt_state))}): {STATE_CURE}"
        )


def refuse_step(compiled: jax.stages.Compiled, mesh: Any, *, limit: int | None = None) -> None:
    """Raises ConfigError where the compiled step needs more than a device has."""
    limit = _limit(mesh) if limit is None else limit
    needed = of_step(compiled)
    if limit and needed.total > limit:
        raise ConfigError(
            f"config.data.batch_size: the compiled step needs {gigabytes(needed.total)} on a device that has "
            f"{gigabytes(limit)} (state and batch {gigabytes(needed.arguments)}, temporaries "
            f"{gigabytes(needed.temporaries)}): {STEP_CURE}"
        )


def text(shapes: Any, batch: Tree, compiled: jax.stages.Compiled, mesh: Any) -> str:
    """One line: bytes a device for every part of the state, batch and temporaries, and their peak against the device."""
    needed, limit = of_step(compiled), _limit(mesh)
    parts = {
        "parameters": local_bytes(shapes.params),
        "optimiser": local_bytes(shapes.opt_state),
        "moving average": local_bytes(shapes.ema),
        "task state": local_bytes(shapes.state),
        "batch": local_bytes(batch),
        "temporaries": needed.temporaries,
    }
    shown = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size)
    of = f" of {gigabytes(limit)}" if limit else ""
    return f"memory a device: {shown}; at most {gigabytes(needed.total)}{of}"


def gigabytes(number: float) -> str:
    """12345678 -> "12.3 MB"."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def _limit(mesh: Any) -> int:
    here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return min((device_limit(device) for device in here), default=0)

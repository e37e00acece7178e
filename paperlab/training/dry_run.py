"""What a run would need, found without running it: the step compiled for N fake devices from shapes alone.

    python -m paperlab.run --config=FILE --dry_run --devices=64

Nothing is allocated and no data is read where the task has a `batch_spec`. Bytes are those of the compiled program on
one device:

    arguments + outputs - outputs that reuse arguments + temporaries

The temporaries are the CPU compiler's; an accelerator's fuses more, so they err on the high side.
"""

from typing import Any

import jax

from paperlab.errors import ConfigError
from paperlab.training import memory, setup
from paperlab.training.flops import count_flops
from paperlab.training.loop import model_flops
from paperlab.training.progress import short
from paperlab.training.protocol import Task
from paperlab.training.step import make_train_step


def show(config: Any, task: Task) -> str:
    """Prints and returns the parameter table of a config, with its shardings on the devices that are here."""
    ready = setup.prepare(config, task)
    text = setup.parameters_text(ready)
    print(text, flush=True)
    return text


def compile_step(config: Any, task: Task) -> dict[str, Any]:
    """Compiles the step for the devices that jax has, prints what it needs, and returns it.

    Returns:
      {"devices", "parameters", "bytes_per_device", "argument_bytes", "temporary_bytes", "flops_per_step",
      "model_flops_per_step", "flops_per_device"}; FLOPs count multiplications and additions of matrix products and
      convolutions.

    Raises:
      ConfigError: the program needs more than `config.mesh.device_memory` GB (10^9 bytes) on a device.
    """
    ready = setup.prepare(config, task)
    print(setup.parameters_text(ready), flush=True)
    with jax.set_mesh(ready.mesh):
        found = {
            "devices": ready.mesh.size,
            **_counted(config, task, ready),
            **_memory(setup.compile_step(config, task, ready)),
        }
    print(_described(found, config.mesh.device_memory), flush=True)
    _fits(found, config.mesh.device_memory)
    return found


def _counted(config: Any, task: Task, ready: setup.Setup) -> dict[str, Any]:
    train = config.train
    step = make_train_step(task, ready.optimizer, micro_batches=train.micro_batches, ema_decay=train.ema_decay)
    key = jax.eval_shape(jax.random.key, 0)
    flops = count_flops(jax.make_jaxpr(step)(ready.shapes, ready.batch, key))
    return {
        "parameters": setup.paths.count(ready.shapes.params),
        "flops_per_step": flops,
        "model_flops_per_step": model_flops(task, ready.shapes.params),
        "flops_per_device": flops / ready.mesh.size,
    }


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    needed = memory.of_step(compiled)
    return {
        "bytes_per_device": needed.total,
        "argument_bytes": needed.arguments,
        "temporary_bytes": needed.temporaries,
    }


def _described(found: dict[str, Any], limit: float) -> str:
    def gigabytes(name: str) -> str:
        return f"{found[name] / 1e9:.3g} GB"

    model = found["model_flops_per_step"]
    lines = [
        f"devices                {found['devices']}",
        f"parameters             {found['parameters']:,}",
        f"FLOPs per step         {short(found['flops_per_step'])}"
        + (f" (of the model: {short(model)})" if model else ""),
        f"FLOPs per device       {short(found['flops_per_device'])}",
        f"memory per device      {gigabytes('bytes_per_device')} of {limit:g} GB",
        f"  state and batch      {gigabytes('argument_bytes')}",
        f"  temporaries          {gigabytes('temporary_bytes')}",
    ]
    return "\n".join(lines)


def _fits(found: dict[str, Any], limit: float) -> None:
    needed = found["bytes_per_device"] / 1e9
    if needed > limit:
        raise ConfigError(
            f"the step needs {needed:.3g} GB on a device, config.mesh.device_memory={limit:g}: raise "
            "config.train.micro_batches, config.mesh.fsdp or config.mesh.tensor, use remat, or lower the batch size"
        )

"""One of two processes that save together, and restore when a part that only one of them reads is damaged.

python -m tests.training.damage_in_processes PORT PROCESS FOLDER      prints what it restored
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def main(port: str, process: int, folder: Path) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    from jax.experimental import multihost_utils

    from paperlab.training.checkpoint import Checkpoints, all_steps
    from tests.training.tiny_task import tiny_config

    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, copied = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())

    def state(step: int) -> dict[str, jax.Array]:
        whole = np.random.default_rng(step).normal(size=(2, 4096)).astype(np.float32)
        return {
            "w": jax.make_array_from_callback(whole.shape, rows, lambda index: whole[index]),
            "step": jax.make_array_from_callback((), copied, lambda index: np.int32(step)),
        }

    found = Checkpoints(folder, tiny_config().checkpoint, say=lambda text: print(f"said: {text}", flush=True))
    for step in (1, 2):
        found.save(step, state(step), {"data_index": step, "metrics": {}})
    found.close()
    if process == 0:
        hurt_the_part_of(1, folder / "checkpoints" / "2" / "state", np.asarray(state(2)["w"].addressable_data(0)))
    multihost_utils.sync_global_devices("damaged")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(1))
    restored = found.restore_latest(shapes)
    assert restored is not None
    same = np.array_equal(restored.tree["w"].addressable_data(0), state(1)["w"].addressable_data(0))
    multihost_utils.sync_global_devices("restored")
    print(
        f"restored step {restored.metadata['step']}, {'equal' if same else 'different'}, left {all_steps(found.directory)}"
    )


def hurt_the_part_of(process: int, folder: Path, own: np.ndarray) -> None:
    """Removes the file with the row of another process; what this one wrote stays as it is."""
    large = [path for path in folder.rglob("d/*") if path.stat().st_size > own.nbytes // 2]
    theirs = [path for path in large if f"ocdbt.process_{process}" in str(path)]
    assert len(theirs) == 1, [str(path) for path in large]
    theirs[0].unlink()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

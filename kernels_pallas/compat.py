"""Every name that differs between JAX versions, or is private in them, in one place.

Written for jax 0.11.2: TPU kernels are `pl.pallas_call` with memory of `tpu`; Hopper kernels are `mosaic_gpu.kernel` (the Triton
backend of `pallas_call` is deprecated and not used here).
"""

import os
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu
from jax.experimental.pallas import tpu as pallas_tpu
from jax.experimental.topologies import get_topology_desc
from jax.sharding import AbstractDevice, AbstractMesh

__all__ = [
    "get_topology_desc",
    "gpu_mesh",
    "gpu_races",
    "gpu_simulation",
    "mosaic_gpu",
    "pallas_tpu",
    "pl",
    "register_cuda",
    "tpu_simulation",
]

H100 = "NVIDIA H100 80GB HBM3"


def tpu_simulation(**options: Any) -> Any:
    """For `interpret=` of a TPU kernel: simulates its memories on a CPU, uninitialised ones full of NaN, parallel grid axes in a
    random order."""
    return pallas_tpu.InterpretParams(**{"uninitialized_memory": "nan", "random_seed": 0, **options})


def gpu_simulation(**options: Any) -> Any:
    """For `interpret=` of a Hopper kernel: simulates its threads and barriers on a CPU and looks for races.

    Its use must stand inside `gpu_mesh()`.
    """
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams(**{"detect_races": True, **options})


def gpu_mesh() -> AbstractContextManager[Any]:
    """A context in which programs for an H100 can be lowered, or simulated, on a machine without one."""
    device = AbstractDevice(device_kind=H100, platform="gpu", num_cores=132)
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def gpu_races() -> bool:
    """Whether the last simulated Hopper kernel raced."""
    from jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks import get_races

    return get_races().races_found


def register_cuda() -> None:
    """Makes the CUDA plugin and the runtime of Mosaic GPU known to JAX after its start, where their wheel can be imported."""
    from jax._src import xla_bridge

    runtime = Path(import_module("jax_cuda13_plugin").__file__ or "").with_name("libmosaic_gpu_runtime.so")
    os.environ.setdefault("MOSAIC_GPU_RUNTIME_LIB_PATH", str(runtime))
    if "cuda" not in xla_bridge._backend_factories:
        import_module("jax_plugins.xla_cuda13").initialize()

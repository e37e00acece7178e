"""Real compilation for TPUs and Hopper GPUs on a machine that has neither.

    with the wheels of `make setup-kernels`:
    compile_for("sm_90a", f, ShapeDtypeStruct(...), ...) -> Compiled(seconds, kernels=[Kernel(name, registers, spilled bytes)])

libtpu compiles for v5e, v6e and v5p; the CUDA plugin of JAX with ptxas compiles for sm_90a and says how many registers a kernel
takes and what it spills. `lower_for` needs no wheel: it checks block shapes, operations, layouts and the budget of shared memory.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from kernels_pallas import compat, platforms

TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}
TARGETS = (*TOPOLOGIES, "sm_90a")
WHEELS = Path(sys.prefix) / "kernels-compile"

# What XLA must know of a GPU that is not there: an H100 SXM.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Kernel(NamedTuple):
    """What ptxas says of one GPU kernel."""

    name: str
    registers: int
    spilled: int  # bytes of spill stores and loads


class Compiled(NamedTuple):
    """seconds: of lowering and of compiling; kernels: of a GPU program, empty for a TPU's; calls: Pallas calls in the program."""

    lowering: float
    compiling: float
    kernels: tuple[Kernel, ...]
    calls: int


def missing() -> str:
    """Why nothing can be compiled for a device that is not there, or ""."""
    if not (WHEELS / "libtpu").is_dir() or not (WHEELS / "jax_plugins").is_dir():
        return f"the wheels are not in {WHEELS}; run make setup-kernels"
    return ""


def lower_for(target: str, f: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> Any:
    """The lowered program of f for "tpu" or "hopper" (or any of TARGETS, the same thing); needs no wheel."""
    kind = "hopper" if target in ("hopper", "sm_90a") else "tpu"
    with platforms.assume(kind), compat.gpu_mesh() if kind == "hopper" else nullcontext():
        traced = jax.jit(lambda *arguments: f(*arguments)).trace(*shapes)
        return traced.lower(lowering_platforms=("cuda" if kind == "hopper" else "tpu",))


def compile_for(target: str, f: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> Compiled:
    """Compiles f for one of TARGETS.

    Raises:
      RuntimeError: the wheels are not there.
      Exception: of the compiler, where it refuses the program.
    """
    if missing():
        raise RuntimeError(missing())
    device = _device(target)
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device)) for x in shapes]
    start = time.perf_counter()
    lowered = lower_for(target, f, *placed)
    middle = time.perf_counter()
    with _captured() as said, _uncached():
        lowered.compile()
    end = time.perf_counter()
    text = lowered.as_text()
    calls = text.count("tpu_custom_call") + len(re.findall(r"@mosaic_gpu\w*", text))
    return Compiled(middle - start, end - middle, _kernels(said()), calls)


def _device(target: str) -> Any:
    if target not in TARGETS:
        raise ValueError(f"target {target!r}: choose one of {', '.join(TARGETS)}")
    _find_wheels()
    if target == "sm_90a":
        compat.register_cuda()
        topology = compat.get_topology_desc("h100", platform="cuda", target_config=_H100, topology="1x1x1")
    else:
        with _captured():  # libtpu looks for a TPU and says that there is none
            topology = compat.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[target])
    return topology.devices[0]


def _find_wheels() -> None:
    if str(WHEELS) not in sys.path:
        sys.path.append(str(WHEELS))
        os.environ["PATH"] = f"{WHEELS / 'nvidia' / 'cu13' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    settings = ("TPU_SKIP_MDS_QUERY", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "MOSAIC_GPU_DUMP_PTXAS")
    for name in (*settings, "ALLOW_MULTIPLE_LIBTPU_LOAD"):  # several processes may compile at once
        os.environ[name] = "1"


@contextmanager
def _uncached() -> Iterator[None]:
    """Without the compilation cache: ptxas speaks only when it runs."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """What compilers write to the process's own stdout and stderr, which Python does not see."""
    with tempfile.TemporaryFile(mode="w+b") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        text = ""

        def said() -> str:
            return text

        try:
            for descriptor in saved:
                os.dup2(file.fileno(), descriptor)
            yield said
        finally:
            for descriptor, copy in saved.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            file.seek(0)
            text = file.read().decode(errors="replace")


def _kernels(said: str) -> tuple[Kernel, ...]:
    found = []
    for part in said.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        if spills and registers:
            found.append(Kernel(name, int(registers[1]), int(spills[1]) + int(spills[2])))
    return tuple(found)

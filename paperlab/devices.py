"""What this process computes on, said first by every run, and a word when an accelerator lies idle."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import jax

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def describe() -> str:
    """One line: platform, device kinds and counts, memory where known, processes, jax version."""
    parts = [f"{count} x {kind}" for kind, count in Counter(map(_kind, jax.devices())).items()]
    processes = jax.process_count()
    where = "1 process" if processes == 1 else f"{processes} processes"
    devices = f"{', '.join(parts)} [{jax.default_backend()}]"
    return f"Devices: {devices}, {where}, jax {jax.__version__}, {platform.platform()}"


def _kind(device: jax.Device) -> str:
    memory = memory_of(device)
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    if device.platform == "cpu":
        return f"cpu ({platform.machine()}, {os.cpu_count()} cores{size})"
    return f"{device.device_kind}{f' ({size[2:]})' if size else ''}"


def memory_of(device: jax.Device) -> int:
    """Bytes that the device can hold, on a CPU those of the machine; 0 where nobody says, or it is another process's."""
    if device.platform == "cpu":
        return machine_memory()
    if device.process_index != jax.process_index():
        return 0
    return int((device.memory_stats() or {}).get("bytes_limit", 0))


def machine_memory(limits: tuple[str, ...] = CGROUP_LIMITS) -> int:
    """Bytes of this machine, or what its control group leaves of them; 0 where nobody says."""
    names = getattr(os, "sysconf_names", {})
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else 0
    for file in limits:
        try:
            limit = int(Path(file).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        total = min(total or limit, limit)
    return total


def idle_accelerator(
    backend: str, asked_for: str = "", environ: Mapping[str, str] = os.environ, dev: Path = Path("/dev")
) -> str:
    """The sentence to print when jax runs on `backend` = cpu beside an NVIDIA GPU or a TPU; "" when all is well.

    Nothing is said when the CPU was asked for: JAX_PLATFORMS=cpu (`asked_for`), or CUDA_VISIBLE_DEVICES empty or -1.
    """
    if backend != "cpu" or asked_for.split(",")[0] == "cpu":
        return ""
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in {"", "-1"}
    if not hidden and (any(dev.glob("nvidia[0-9]*")) or _nvidia_smi_lists_one()):
        return _advice("an NVIDIA GPU", "cuda13", "jax_cuda13_plugin", "`nvidia-smi` (the driver must know CUDA 13)")
    if any(dev.glob("accel[0-9]*")) or environ.get("TPU_ACCELERATOR_TYPE"):
        return _advice("a TPU", "tpu", "libtpu", "whether another process holds it (`fuser /dev/accel0`)")
    return ""


def warn_if_accelerator_unused() -> None:
    """Prints `idle_accelerator`'s sentence to stderr, if there is one."""
    sentence = idle_accelerator(jax.default_backend(), jax.config.jax_platforms or "")
    if sentence:
        print(sentence, file=sys.stderr, flush=True)


def _advice(what: str, device: str, plugin: str, check: str) -> str:
    start = f"Note: this machine has {what}, but jax runs on the CPU"
    if importlib.util.find_spec(plugin):
        return f"{start} although {plugin} is installed: check {check}."
    return f"{start} only. To use it: make setup DEVICE={device}"


def _nvidia_smi_lists_one() -> bool:
    program = shutil.which("nvidia-smi")
    if not program:
        return False
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "GPU" in listed.stdout


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk between runs, in ~/.cache/paperlab/jax unless jax was told another place."""
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "paperlab" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

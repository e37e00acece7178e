"""The device at hand: what it is, and what it can do at all, measured before anything else.

Copy counts bytes read plus bytes written. The product is bfloat16 on a GPU or TPU, float32 on a CPU. A call is the smallest
program there is, waited for.
"""

import os
import platform as system
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import platforms
from kernels_pallas.bench.timing import Call, Plan, interleaved, median


class Ceilings(NamedTuple):
    """bytes a second of a copy, operations a second of a product, milliseconds of a call that does next to nothing."""

    copy: float
    matmul: float
    call_ms: float


def ceilings(plan: Plan, *, quick: bool = False) -> Ceilings:
    """Measures them: a copy of 1 GB and a product of 8192 x 8192 (16 MB and 512 x 512 on a CPU, or with `quick`)."""
    small = quick or platforms.platform() == "cpu"
    numbers, side = (1 << 22, 512) if small else (1 << 28, 8192)
    dtype = jnp.float32 if platforms.platform() == "cpu" else jnp.bfloat16
    x = jax.random.normal(jax.random.key(0), (numbers,))
    a, b = (jax.random.normal(jax.random.key(n), (side, side)).astype(dtype) for n in (1, 2))
    one = jnp.ones((8,))
    copy, product, least = (jax.jit(f) for f in (lambda x: x + 1, lambda a, b: a @ b, lambda x: x + 1))
    calls: dict[str, Call] = {"copy": lambda _: copy(x), "matmul": lambda _: product(a, b)}
    samples = interleaved(calls, plan, jax.block_until_ready)
    waited = interleaved({"call": lambda _: jax.block_until_ready(least(one))}, plan, jax.block_until_ready)
    seconds = {label: median(values) * 1e-3 for label, values in (samples | waited).items()}
    return Ceilings(2 * x.nbytes / seconds["copy"], 2 * side**3 / seconds["matmul"], seconds["call"] * 1e3)


def kind() -> str:
    """What JAX calls the first device; "cpu" for any CPU."""
    first = jax.devices()[0]
    return first.device_kind if first.platform != "cpu" else "cpu"


def slug() -> str:
    """The same for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", kind().lower()).strip("-")


def memory() -> float:
    """Bytes that a program may use here: of the device, or half of the machine's on a CPU."""
    if platforms.platform() == "cpu":
        return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stats = jax.devices()[0].memory_stats() or {}
    return float(stats.get("bytes_limit", float("inf")))


def described() -> dict[str, Any]:
    """Where numbers come from: commit, device, machine, versions."""
    commit, dirty = _git()
    return {
        "commit": commit,
        "dirty": dirty,
        "device": kind(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {system.system()} {system.machine()}",
        "versions": {"python": system.python_version(), **{name: _version(name) for name in ("jax", "jaxlib")}},
    }


def _git() -> tuple[str, bool]:
    """(commit, whether tracked files outside results/ differ); KERNELS_COMMIT where the tree was copied without its history."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
            )
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    if not commit:
        return os.environ.get("KERNELS_COMMIT", ""), False
    return commit, bool(git("status", "--porcelain", "--untracked-files=no", "--", ":(top,exclude)results"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else system.processor() or "unknown processor"

"""Where a recorded number comes from: the commit, the versions, the device and the machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "paperlab")


def git_version() -> tuple[str, bool]:
    """The commit and whether tracked files outside results/ differ from it.

    Outside a repository ($KERNELS_COMMIT, False): the commit of a tree that was copied without its history, if that was set.
    """

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
    return commit, bool(git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)results"))


def versions() -> dict[str, str]:
    """Python and the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def device() -> str:
    """The kind of the first device; "cpu" for any CPU."""
    import jax

    first = jax.devices()[0]
    return first.device_kind if first.platform != "cpu" else "cpu"


def machine() -> str:
    """Processor, cores and system in words."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"

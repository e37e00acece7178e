"""Installs this clone into the environment that Colab brings; the first cell of every notebook runs it there.

Colab's own jax stays, to the last digit, where its version suffices; else jax is upgraded for the accelerator that is there.
It must run inside the kernel (runpy, not a shell): only there can it be seen that something was loaded before it was replaced.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESTART = "Runtime > Restart session, then run the notebook from the top"


def main() -> None:
    """Installs, and says what was kept, what was upgraded, and whether the runtime must be restarted.

    Raises:
      RuntimeError: pip failed (its last lines are shown), or something was replaced that this kernel had loaded.
    """
    before = versions()
    packages, pinned = plan(jax_requirement(), before)
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "constraints.txt")
        pins.write_text(pinned)
        install("--constraint", str(pins), "--editable", str(ROOT), *packages)
    after = versions()
    stale = replaced(before, after, sys.modules)
    if stale:
        raise RuntimeError(f"Installed, but {', '.join(stale)} was loaded before. {RESTART}.")
    importlib.invalidate_caches()
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    print(f"paperlab {after['paperlab']} is installed, with jax {after['jax']}.")


def jax_requirement() -> Any:
    """What pyproject.toml asks of jax, a `packaging` requirement."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(found for found in map(Requirement, project["dependencies"]) if found.name == "jax")


def plan(needed: Any, installed: dict[str, str]) -> tuple[list[str], str]:
    """Packages to install beside paperlab, and pip constraints for what must stay; says which of the two it is."""
    own = installed.get("jax")
    if own and needed.specifier.contains(own, prereleases=True):
        print(f"Colab's jax {own} suffices and stays.")
        return [], "".join(f"{name}=={version}\n" for name, version in installed.items() if of_jax(name))
    print(
        f"Colab has {f'jax {own}' if own else 'no jax'}, paperlab needs jax{needed.specifier}: jax and jaxlib are upgraded."
    )
    print(f"If something of them was in use already, the runtime has to be restarted: {RESTART}.")
    return [f"jax{accelerator(installed)}{needed.specifier}"], ""


def of_jax(name: str) -> bool:
    """Whether a distribution belongs to jax: itself, jaxlib, the plugins of accelerators."""
    return name in ("jax", "jaxlib", "libtpu") or name.startswith(("jax-cuda", "jax-rocm"))


def accelerator(installed: dict[str, str]) -> str:
    """The extra of jax for the device of this runtime: "[tpu]", "[cuda12]" or "[cuda13]" (as the plugin there), or ""."""
    if os.environ.get("TPU_ACCELERATOR_TYPE") or Path("/dev/accel0").exists():
        return "[tpu]"
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0:
        return "[cuda13]" if "jax-cuda13-plugin" in installed else "[cuda12]"
    return ""


def install(*arguments: str) -> None:
    """`pip install` with what it said shown only if it failed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError("\n".join(["pip install failed:", *said[-12:]]))


def versions() -> dict[str, str]:
    """{distribution: version} of what would be imported: where two are installed, the first on sys.path."""
    found = [(d.metadata["Name"], d.version) for d in distributions()]
    return {name.lower().replace("_", "-"): version for name, version in reversed(found) if name}


def replaced(before: dict[str, str], after: dict[str, str], modules: Any) -> list[str]:
    """Distributions with another version than before whose module (of the same name) this kernel has loaded."""
    loaded = {name.partition(".")[0] for name in modules}
    changed = (name for name, version in before.items() if after.get(name) != version)
    return [f"{name} {before[name]}" for name in changed if name.replace("-", "_") in loaded]


if __name__ == "__main__":
    main()

"""Downloads into ./wheels what a GPU machine without a network lacks: python scripts/wheels.py [--to=FOLDER] [--list]

Kernels of other packages to be compared with, and the packages of this house that the machine does not have (PyTorch, Triton, JAX,
flax, optax and orbax are there). Versions of the latter are those of requirements.lock. For Python 3.12 on Linux x86_64.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = (
    "fla-core==0.6.0",
    "flash-linear-attention==0.6.0",
    "jax-linear-attention==0.1.0",
    "accelerated-scan==0.3.1",
)
HOUSE = ("grain", "array-record", "portpicker", "ml-collections")
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def wanted() -> list[str]:
    """Requirements, each with its version."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.MULTILINE))
    return [*PEERS, *(f"{name}=={pinned[name]}" for name in HOUSE)]


def command(folder: Path) -> list[str]:
    """The pip call: wheels only, and without what they depend on."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--python-version=3.12"]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    return [sys.executable, "-m", "pip", "download", *options, *platforms, "--dest", str(folder), *wanted()]


def main(argv: list[str] | None = None) -> int:
    """Downloads, and says what lies in the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--to", type=Path, default=ROOT / "wheels", metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="name them and download nothing")
    flags = parser.parse_args(argv)
    if flags.list:
        print("\n".join(wanted()))
        return 0
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        subprocess.run([sys.executable, "-m", "ensurepip"], capture_output=True, check=True)
    flags.to.mkdir(parents=True, exist_ok=True)
    for old in flags.to.glob("*.whl"):
        old.unlink()
    done = subprocess.run(command(flags.to), check=False)
    found = sorted(flags.to.glob("*.whl"))
    print(f"{flags.to}: {len(found)} wheels, {sum(wheel.stat().st_size for wheel in found) / 1e6:.1f} MB")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

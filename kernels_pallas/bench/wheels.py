"""Wheels that lie in a folder, installed beside the environment: nothing is downloaded and nothing of it is changed."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path


def install(folder: Path) -> str:
    """The folder to put on the path of Python with what is in `folder`; "" where no wheel is there.

    Raises:
      RuntimeError: pip refused, with its last line.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return ""
    names = "\n".join(f"{wheel.name} {wheel.stat().st_size}" for wheel in wheels)
    digest = hashlib.sha256(f"{sys.version}\n{names}".encode()).hexdigest()[:12]
    target = Path(tempfile.gettempdir()) / f"kernels-pallas-wheels-{digest}"
    if not (target / ".ready").exists():
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *map(str, wheels)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "pip said nothing").splitlines()
            raise RuntimeError(f"wheels of {folder}: {lines[-1]}")
        (target / ".ready").touch()
    return str(target)

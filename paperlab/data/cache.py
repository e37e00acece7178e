"""Arrays that are slow to make, kept on disk: one folder a key, .npy files in it, moved into place in one piece.

A reader never sees half a folder; two processes that make the same one at once agree on who came first.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def cached(folder: str, key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays under `key`, memory-mapped; made and stored if they are not there or damaged.

    A folder that cannot be written costs the cache, not the run.

    Args:
      folder: cache directory; "" = ~/.cache/paperlab.
      key: everything that the arrays depend on.
      make: makes them.
    """
    try:
        root = Path(folder).expanduser() if folder else Path.home() / ".cache" / "paperlab"
    except RuntimeError:  # nobody knows where home is
        return make()
    place = root / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    found = _read(place)
    if found is not None:
        return found
    arrays = make()
    try:
        root.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=root, prefix="making-"))
    except OSError:
        return arrays
    try:
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array, allow_pickle=False)
        (fresh / "names").write_text("\n".join(arrays))
        if place.exists() and _read(place) is None:  # damaged
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rename(fresh, place)
    except OSError:
        return arrays
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    found = _read(place)
    return arrays if found is None else found


def _read(place: Path) -> dict[str, np.ndarray] | None:
    try:
        names = (place / "names").read_text().splitlines()
        return {name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (OSError, ValueError):
        return None

"""The seam to `kernels_pallas`: which recurrences have a kernel for the device at hand."""

from typing import Any, NoReturn


def pallas(name: str, *_: Any, **__: Any) -> NoReturn:
    """Raises ValueError: no kernel of that name is there."""
    raise ValueError(f"impl='pallas': kernels_pallas has no kernel for {name} yet; use impl='auto'")

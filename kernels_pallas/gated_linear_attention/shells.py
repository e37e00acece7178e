"""Where Pallas kernels of GLA plug in: one shell a platform, empty until a kernel is there.

A shell says in one sentence why it can't take an input (`supports` -> None if it can), and otherwise computes what
`chunked` computes.
"""

from typing import Protocol

import jax
from jax import Array

from kernels_pallas.gated_linear_attention.inputs import Inputs


class Shell(Protocol):
    """A kernel for one platform, forward and backward."""

    def supports(self, x: Inputs, chunk: int, sub_chunk: int) -> str | None: ...

    def __call__(self, x: Inputs, chunk: int, sub_chunk: int) -> tuple[Array, Array]: ...


SHELLS: dict[str, Shell] = {}  # "tpu", "gpu" -> shell


def pallas(x: Inputs, chunk: int, sub_chunk: int) -> tuple[Array, Array]:
    """Runs the kernel of this platform.

    Raises:
      ValueError: if there is none, or if it does not take this input.
    """
    platform = jax.default_backend()
    if platform not in SHELLS:
        raise ValueError(
            f"impl='pallas': gla has no kernel for {platform!r} (there are {sorted(SHELLS)}); use 'chunked'"
        )
    reason = SHELLS[platform].supports(x, chunk, sub_chunk)
    if reason is not None:
        raise ValueError(f"impl='pallas' on {platform!r}: {reason}; use 'chunked'")
    return SHELLS[platform](x, chunk, sub_chunk)

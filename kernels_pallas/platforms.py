"""Which implementation runs where, and why not a faster one.

An operation has up to five: `reference` (the definition, works in float64), `chunked` (pure JAX, any device), `pallas` (a kernel of
the device at hand), `interpret` (the TPU kernel run by Pallas's interpreter on any device, for tests) and `auto`: the kernel
where there is one for this device and these arguments, else `chunked`, said once in the log of `kernels_pallas`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
from jax.sharding import AxisType

IMPLEMENTATIONS = ("auto", "reference", "chunked", "pallas", "interpret")
PLATFORMS = ("tpu", "hopper")

log = logging.getLogger("kernels_pallas")
_assumed: ContextVar[str | None] = ContextVar("platform", default=None)
_said: set[tuple[str, str]] = set()


class Support(NamedTuple):
    """Whether a kernel takes these arguments; true or false by itself. `reason` is a sentence where it does not."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


YES = Support(True)


def no(reason: str) -> Support:
    """A refusal; the reason begins in lower case and names the argument: "K = 96 is no multiple of 64"."""
    return Support(False, reason)


def platform() -> str:
    """ "tpu", "hopper" (an NVIDIA GPU of compute capability 9.x), or what JAX calls any other: "cpu", "gpu"."""
    assumed = _assumed.get()
    if assumed is not None:
        return assumed
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    capability = getattr(jax.devices()[0], "compute_capability", "")
    return "hopper" if str(capability).startswith("9.") else "gpu"


@contextmanager
def assume(name: str) -> Iterator[None]:
    """Traces for a platform that is not there: "tpu", "hopper" or "cpu". What is traced inside can only be lowered for it."""
    if name not in (*PLATFORMS, "cpu"):
        raise ValueError(f"platform {name!r}: choose one of {', '.join(PLATFORMS)}, cpu")
    token = _assumed.set(name)
    try:
        yield
    finally:
        _assumed.reset(token)


def choose(op: str, impl: str, supports: Callable[[str], Support], known: tuple[str, ...] = IMPLEMENTATIONS) -> str:
    """What `impl` means for a call: "reference", "chunked", "interpret", or the platform whose kernel is to run.

    Args:
      supports: asked for a platform ("tpu", "hopper", "cpu", "gpu"), or for "tpu" where `impl` is "interpret".

    Raises:
      ValueError: unknown `impl`; "pallas" or "interpret" where the kernel refuses, with its reason.
    """
    if impl not in known:
        raise ValueError(f"{op}: impl={impl!r}: choose one of {', '.join(known)}")
    if impl not in ("auto", "pallas", "interpret"):
        return impl
    here = "tpu" if impl == "interpret" else platform()
    found = (
        supports(here) if here in PLATFORMS else no(f"there is no kernel for {here!r}, only for TPU and Hopper GPUs")
    )
    if found and impl != "interpret":
        found = _undivided()
    if found:
        return "interpret" if impl == "interpret" else here
    if impl != "auto":
        raise ValueError(f"{op}: impl={impl!r}: {found.reason}; use 'chunked' or 'auto'")
    if here in PLATFORMS and (op, found.reason) not in _said:
        _said.add((op, found.reason))
        log.warning("%s: no kernel, plain JAX instead: %s", op, found.reason)
    return "chunked"


def _undivided() -> Support:
    """A kernel is a program of one device, which XLA can't split over the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    split = [name for name, kind in kinds if kind != AxisType.Manual and mesh.shape[name] > 1]
    return no(f"the mesh splits {', '.join(split)}; call it inside jax.shard_map(check_vma=False)") if split else YES

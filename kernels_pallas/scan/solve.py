"""Any of the scans on groups, differentiable: the gradient is one more run, the other way, which keeps a and h."""

from functools import partial
from typing import Any

import jax

from kernels_pallas.scan import chunked, hopper, reference, tpu
from kernels_pallas.scan.algebra import Algebra, Planes
from kernels_pallas.scan.config import Config
from kernels_pallas.scan.groups import Group


def solve(
    algebra: Algebra, how: str, a: Group, b: Group, h0: Planes, *, reverse: bool, config: Config
) -> tuple[Group, Planes]:
    """(h, last) by the implementation `how`, what `platforms.choose` returns."""
    if how == "reference":
        return reference.forward(algebra, a, b, h0, reverse=reverse)
    return _solve(algebra, how, reverse, config, a, b, h0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _solve(algebra: Algebra, how: str, reverse: bool, config: Config, a: Group, b: Group, h0: Planes) -> Any:
    if how == "chunked":
        return chunked.forward(algebra, a, b, h0, reverse=reverse)
    if how in ("tpu", "interpret"):
        return tpu.forward(algebra, a, b, h0, reverse=reverse, config=config, interpret=how == "interpret")
    return hopper.forward(algebra, a, b, h0, reverse=reverse, config=config)


def _forward(algebra: Algebra, how: str, reverse: bool, config: Config, a: Group, b: Group, h0: Planes) -> tuple:
    h, last = _solve(algebra, how, reverse, config, a, b, h0)
    return (h, last), (a, h, h0)


def _backward(algebra: Algebra, how: str, reverse: bool, config: Config, kept: tuple, cotangents: tuple) -> tuple:
    a, h, h0 = kept
    g, g_last = cotangents
    if how == "chunked":
        return chunked.backward(algebra, a, h, h0, g, g_last, reverse=reverse)
    if how in ("tpu", "interpret"):
        interpret = how == "interpret"
        return tpu.backward(algebra, a, h, h0, g, g_last, reverse=reverse, config=config, interpret=interpret)
    return hopper.backward(algebra, a, h, h0, g, g_last, reverse=reverse, config=config)


_solve.defvjp(_forward, _backward)

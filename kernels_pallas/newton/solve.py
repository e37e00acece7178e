"""Any of the solvers, differentiable: the gradient is one reverse linear solve, whatever the number of Newton steps.

    lambda_t = J_{t+1}^T lambda_{t+1} + g_t,   J_t = df/dh at (x_t, h_{t-1})

and then the pullback of the step at every (x_t, h_{t-1}) with cotangent lambda_t. Kept are the inputs and the trajectory.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array
from jax import numpy as jnp

from kernels_pallas.newton import hopper, reference, tpu
from kernels_pallas.newton.chunked import chunked
from kernels_pallas.newton.core import Cell, State
from kernels_pallas.newton.reference import residual, shifted, split
from kernels_pallas.scan import block2_scan, linear_scan


class ChunkedConfig(NamedTuple):
    """Positions of a block of the plain JAX form."""

    time: int = 64


class Route(NamedTuple):
    """impl: what `platforms.choose` returns; config: of that implementation's type, None for the reference."""

    impl: str
    iterations: int
    config: Any


def solve(cell: Cell, route: Route, x: Array, w: State, start: State) -> tuple[State, Array]:
    """(states [B,T,D] each in the dtype of `start`, residual [B] float32); x [B,T,3,D], w [D] each, start [B,D] each."""
    if route.impl == "reference":
        states = reference.sequential(cell, x, w, start)
        return states, residual(cell, x, w, start, states)
    return _solve(cell, route, x, w, start)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(cell: Cell, route: Route, x: Array, w: State, start: State) -> tuple[State, Array]:
    if route.impl == "chunked":
        states = chunked(cell, x, w, start, route.iterations, route.config.time)
        return states, residual(cell, x, w, start, states)
    if route.impl == "hopper":
        return hopper.solve(cell, x, w, start, route.iterations, route.config)
    return tpu.solve(cell, x, w, start, route.iterations, route.config, interpret=route.impl == "interpret")


def _forward(cell: Cell, route: Route, x: Array, w: State, start: State) -> tuple[tuple[State, Array], tuple]:
    states, worst = _solve(cell, route, x, w, start)
    return (states, worst), (x, w, start, states)


def _backward(cell: Cell, route: Route, kept: tuple, cotangents: tuple[State, Array]) -> tuple[Array, State, State]:
    x, w, start, states = kept
    direct, _ = cotangents
    gates, before = split(x.astype(states[0].dtype)), shifted(start, states)
    adjoint = _adjoint(cell, route, gates, w, before, direct)
    _, pullback = jax.vjp(cell.step, gates, w, before)
    d_gates, d_w, d_before = pullback(adjoint)
    return jnp.stack(d_gates, axis=2).astype(x.dtype), d_w, tuple(d[:, 0] for d in d_before)


def _adjoint(cell: Cell, route: Route, x: State, w: State, before: State, direct: State) -> State:
    """lambda [B,T,D] each."""
    impl = route.impl if route.impl in ("chunked", "interpret") else "auto"
    J = jax.tree.map(_next, cell.linearized(x, w, before)[1])
    if cell.states == 1:
        return (linear_scan(J[0][0], direct[0], reverse=True, impl=impl)[0],)
    transposed = jnp.stack([jnp.stack([J[0][0], J[1][0]], axis=2), jnp.stack([J[0][1], J[1][1]], axis=2)], axis=2)
    return split(block2_scan(transposed, jnp.stack(direct, axis=2), reverse=True, impl=impl)[0])


def _next(v: Array) -> Array:
    """The value one step later; zero after the last."""
    return jnp.pad(v[:, 1:], ((0, 0), (0, 1), (0, 0)))


_solve.defvjp(_forward, _backward)

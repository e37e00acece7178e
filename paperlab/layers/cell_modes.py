"""The ways of running a recurrent cell over sequences: one set of parameters, the same states, other orders of evaluation.

    mode               steps in time                  what runs
    sequential         T                              the step, T times (lax.scan)
    parallel           k (2 log2 T + 1)               k Newton iterations, linear recurrences and everything else in XLA
    parallel_kernel    k, each a pass of a kernel     linear recurrences by a kernel, the rest in XLA; diagonal and 2 x 2 Jacobians
    parallel_fused     one kernel                     guess, all iterations and residual in one kernel; cells that have one
    auto               on a CPU what was measured to be fastest; on a TPU or a Hopper GPU the last of these that the cell has

Without a kernel for the device, the last two run the same algorithm in plain JAX where impl="auto", and are refused where it is
"pallas". ParaRNN (arXiv 2510.21450), section 4: its modes of the same names.
"""

import logging
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.platforms import PLATFORMS, platform
from paperlab.layers.recurrent_cell import Recipe
from paperlab.layers.sharding import by_rows
from paperlab.recurrence import Solver, newton_solve
from paperlab.recurrence.affine import CHUNK, starts
from paperlab.recurrence.choice import choose

MODES = ("auto", "sequential", "parallel", "parallel_kernel", "parallel_fused")
IMPLEMENTATIONS = ("auto", "pallas", "interpret")
REDUCTIONS = ("associative", "chunked")
log = logging.getLogger("paperlab")
_said: set[str] = set()


class How(NamedTuple):
    """mode: of MODES; solver: how to iterate; reduction, chunk: of "parallel", as in `newton_solve`; impl: of the kernels;
    check: compare the declared structure with derivatives at the very arguments (outside jit only)."""

    mode: str = "auto"
    solver: Solver = Solver()
    reduction: str = "associative"
    chunk: int = CHUNK
    impl: str = "auto"
    check: bool = False


class Applied(NamedTuple):
    """outputs [B, T, width] in the dtype of the inputs; last [B, *state] float32; of every sequence: iterations [B] int32 (0 where
    there were none) and residual [B], how far the states are from obeying the recurrence."""

    outputs: Array
    last: Array
    iterations: Array
    residual: Array


def run_cell(
    made: Recipe, params: Any, x: Array, h0: Array | None = None, segment_ids: Array | None = None, how: How = How()
) -> Applied:
    """Runs h_t = step(params, x_t, h_{t-1}) over rows of sequences.

    Args:
      made: the cell, see `recurrent_cell.recipe`.
      params: of `made.init`.
      x: what the step reads, [B, T, inputs, width], bias included.
      h0: the state before the first step [B, *state]; zeros if omitted.
      segment_ids: integers [B, T]; where the id changes, the state is reset to zero before the step.
      how: mode and solver. With a tolerance, rows that miss it are NaN.

    Raises:
      ValueError: what `why_not` says; a kernel that is asked for where there is none, or that refuses; with `how.check` a step that
        is not what it is declared to be.
    """
    mode = fastest(made, how, x.shape[1]) if how.mode == "auto" else how.mode
    refusal = why_not(made, how._replace(mode=mode))
    if refusal:
        raise ValueError(refusal)
    h0 = made.zero_state(x.shape[0]) if h0 is None else h0
    if mode == "parallel_fused":
        return _fused(made, params, x, h0, segment_ids, how)
    impl = {"sequential": "sequential", "parallel": how.reduction}.get(mode) or _kernel(how)
    solver = replace(how.solver, iterations=1) if made.linear and how.solver == _fixed(how.solver) else how.solver

    def run(x: Array, h0: Array, segment_ids: Array | None) -> Applied:
        check = how.check and not _traced(params, x, h0)
        found = newton_solve(
            made.cell,
            params,
            x,
            h0[:, 0],
            solver=solver,
            axis=1,
            segment_ids=segment_ids,
            impl=impl,
            chunk=how.chunk,
            check=check,
        )
        return Applied(found.outputs, found.last, found.iterations, found.residual)

    if impl in ("pallas", "interpret"):
        return by_rows(run, x, h0[:, None], segment_ids)
    return run(x, h0[:, None], segment_ids)


def why_not(made: Recipe, how: How) -> str:
    """Why a cell can't be run so, "" where it can; whether this device has a kernel is not asked."""
    solver, kind = how.solver, made.cell.structure
    if how.mode == "parallel_fused":
        if made.fused is None:
            return "mode='parallel_fused': this cell has no kernel of its own (with these nonlinearities); use 'parallel_kernel'"
        if solver != _fixed(solver):
            return "mode='parallel_fused': its kernel takes a fixed count of undamped Newton iterations; use 'parallel_kernel'"
    if how.mode == "parallel_kernel":
        if solver.method in ("elk", "quasi_elk"):
            return f"mode='parallel_kernel': method={solver.method!r} has no kernel; use mode='parallel'"
        two = kind == "blocks" and made.cell.state[0] == 2
        if solver.method == "newton" and kind != "diagonal" and not two:
            known = "diagonal Jacobians and blocks of two variables"
            return f"mode='parallel_kernel': there are kernels for {known}, not for {kind!r}; use mode='parallel'"
    if how.mode == "parallel" and how.reduction == "chunked" and solver.method in ("elk", "quasi_elk"):
        return f"reduction='chunked': method={solver.method!r} has none; use reduction='associative'"
    return ""


def fastest(made: Recipe, how: How, T: int) -> str:
    """What "auto" means here, for sequences of T steps."""
    if choose("newton", T, made.width) == "sequential":
        return "sequential"
    kernels = ("parallel_fused", "parallel_kernel") if platform() in PLATFORMS else ()
    return next((mode for mode in kernels if not why_not(made, how._replace(mode=mode))), "parallel")


def _fixed(solver: Solver) -> Solver:
    """The solver of this one that the fused kernels have, and a linear cell needs no more than."""
    return Solver(iterations=solver.iterations)


def _kernel(how: How) -> str:
    """impl of `newton_solve` for "parallel_kernel"."""
    if how.impl != "auto" or platform() in PLATFORMS:
        return "pallas" if how.impl == "auto" else how.impl
    _say(
        f"mode='parallel_kernel': there is no kernel for {platform()!r}; its algorithm in plain JAX, reduction={how.reduction!r}"
    )
    return how.reduction


def _fused(made: Recipe, params: Any, x: Array, h0: Array, segment_ids: Array | None, how: How) -> Applied:
    if made.fused is None:
        raise ValueError(why_not(made, how))
    if how.impl == "auto" and platform() not in PLATFORMS:
        _say(f"mode='parallel_fused': there is no kernel for {platform()!r}; its algorithm in plain JAX")
    count = how.solver.limit(x.shape[1])
    fused = made.fused

    def run(x: Array, h0: Array, flags: Array | None) -> tuple[Array, Array]:
        states, residual = fused(params, x, h0[:, 0], iterations=count, impl=how.impl, starts=flags)
        return states, residual[:, None, None]

    flags = None if segment_ids is None else starts(segment_ids, axis=1, reverse=False).astype(jnp.int32)
    states, residual = by_rows(run, x, h0[:, None], flags)
    outputs = made.cell.output(states)  # type: ignore[misc]
    iterations = jnp.full(x.shape[:1], count, jnp.int32)
    return Applied(outputs.astype(x.dtype), states[:, -1], iterations, residual[:, 0, 0])


def _traced(*trees: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def _say(sentence: str) -> None:
    """Once."""
    if sentence not in _said:
        _said.add(sentence)
        log.warning("%s", sentence)

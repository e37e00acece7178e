"""Nonlinear recurrences in parallel: h_t = f(h_{t-1}, x_t) for all t at once, by Newton's method on the whole sequence.

    impl          steps in time       work                               memory of the gradient
    sequential    T                   T steps                            T states, and what every step keeps
    associative   k (2 log2 T + 1)    k T (Jacobians, 2 compositions)    T states and T Jacobians
    chunked       k T/C               the same                           the same

with k iterations (3 for cells with bounded recurrent weights, whatever T), each one linear recurrence of the cell's structure
(`block_scan`). With windows of W steps: T/W times as many steps, less work where convergence is slow.

Facts to rely on (undamped Newton): a linear cell takes one iteration; after k iterations the first k + 1 states are exact (k with
a guess that is wrong at the first), so T iterations always suffice, up to rounding, which a chaotic cell amplifies; near the
solution convergence is quadratic.

Source: ParaRNN (arXiv 2510.21450); DEER (arXiv 2309.12252); quasi-DEER and ELK (arXiv 2407.19115).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import checkify

from paperlab.recurrence import affine
from paperlab.recurrence.choice import choose
from paperlab.recurrence.jacobian import check_cell
from paperlab.recurrence.newton_cell import Cell, Solution, Solver
from paperlab.recurrence.newton_loop import Trajectory, implicit, states_like, trajectory
from paperlab.recurrence.newton_system import Reduction, System, apply, corrected, first_guess, largest

IMPLEMENTATIONS = ("auto", "sequential", "associative", "chunked", "pallas", "interpret")


def newton_solve(
    cell: Cell,
    params: Any,
    x: Any,
    h0: Array | None = None,
    *,
    solver: Solver | None = None,
    axis: int = -2,
    reverse: bool = False,
    segment_ids: Array | None = None,
    mask: Array | None = None,
    guess: Array | None = None,
    impl: str = "auto",
    chunk: int = affine.CHUNK,
    check: bool = False,
) -> Solution:
    """Evaluates h_t = cell.step(params, x_t, h_{t-1}) for all t, and says how well.

    Args:
      cell: the step and the structure of its Jacobian.
      params: any tree of arrays; gradients flow to it.
      x: inputs, a tree of arrays [batch..., T, features]. Floating leaves of params and x are taken to float32 (float64 if any is
        float64) before the step sees them; a matmul on x that may run in bfloat16 belongs outside.
      h0: the state before the first step, [batch..., *cell.state]; zeros if omitted.
      solver: how to iterate; 3 Newton iterations if omitted. Not used by impl="sequential".
      axis: the time axis of every leaf of x; the axes before it are batch, those after it features.
      reverse: from the last step to the first; h0 is then the state after the last one.
      segment_ids: integers [batch..., T]; where the id changes the state is reset to zero before the step. h0 belongs to the
        segment that comes first.
      mask: bool [batch..., T]; where False (padding) the state is passed on as it is.
      guess: states [batch..., T, *cell.state] to start from, e.g. those of an earlier call; no gradient flows to it.
      impl: "auto" (the fastest measured for this backend, length and width), "sequential" (the step, T times), "associative" or
        "chunked" (how the linear recurrences are evaluated; "elk" has no "chunked" form), or "pallas" (the same by kernels, for
        diagonal Jacobians and blocks of two; kernels_pallas.newton_gru and newton_lstm fuse whole solvers of two cells) or
        "interpret" (those kernels run by an interpreter on any device, for tests).
      chunk: steps of a chunk, for "chunked".
      check: first compare the declared structure with derivatives (`check_cell`); outside jit only.

    Returns:
      A Solution. With a tolerance, sequences that missed it are NaN (or raise, see `Solver`), never returned as if solved.

    Raises:
      ValueError: arguments that do not fit each other, a cell that is not what it says (`check`), an unknown `impl`.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    solver = solver or Solver()
    system, guess, dtype, time = _system(cell, params, x, h0, axis, reverse, segment_ids, mask, guess, chunk)
    if check:
        check_cell(cell, system.params, system.x, _somewhere(cell, system) if guess is None else guess)
    like = states_like(cell, system)
    if impl == "auto":
        impl = choose("newton", like.shape[time], like.size // like.shape[time])
    if impl == "sequential":
        found, adaptive = _step_by_step(cell, system, time), False
    else:
        _check_method(solver, impl)
        run = implicit if solver.differentiate == "implicit" else trajectory
        found, adaptive = run(cell, solver, Reduction(impl, chunk), system, guess), solver.adaptive
    residual = largest(cell, _residual(cell, *lax.stop_gradient((system, found.states))))
    states = _marked(cell, solver, found) if adaptive else found.states
    last = states[(slice(None),) * time + (-1,)]
    if reverse:
        states = jnp.flip(states, time)
    outputs = states if cell.output is None else cell.output(states)
    outputs = jax.tree.map(lambda leaf: leaf.astype(dtype), outputs)
    met = found.converged if solver.adaptive else None
    return Solution(outputs, states.astype(dtype), last, found.iterations, residual, met)


def newton_iterates(
    cell: Cell,
    params: Any,
    x: Any,
    h0: Array | None = None,
    *,
    iterations: int,
    solver: Solver | None = None,
    axis: int = -2,
    segment_ids: Array | None = None,
    mask: Array | None = None,
    guess: Array | None = None,
    impl: str = "associative",
    chunk: int = affine.CHUNK,
) -> tuple[Array, Array]:
    """Every iterate from the guess on, to study convergence: (states [iterations + 1, batch..., T, *state], residuals
    [iterations + 1, batch...]). Arguments as in `newton_solve`; `solver` gives method, damping and trust.

    Raises:
      ValueError: as `newton_solve`, and if `impl` is not "associative" or "chunked".
    """
    if impl not in ("associative", "chunked"):
        raise ValueError(f"impl={impl!r}: choose associative or chunked")
    solver = solver or Solver()
    _check_method(solver, impl)
    system, guess, _, _ = _system(cell, params, x, h0, axis, False, segment_ids, mask, guess, chunk)
    start = first_guess(cell, system, states_like(cell, system))

    def iterate(h: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        following, residual = corrected(cell, solver, Reduction(impl, chunk), system, h, start)
        return following, (h, largest(cell, residual))

    _, found = lax.scan(iterate, start if guess is None else guess, length=iterations + 1)
    return found


def _residual(cell: Cell, system: System, h: Array) -> Array:
    return apply(cell, system, h) - h


def _somewhere(cell: Cell, system: System) -> Array:
    """States to look at when there are none yet."""
    like = states_like(cell, system)
    return jax.random.normal(jax.random.key(0), like.shape, like.dtype)


def _step_by_step(cell: Cell, system: System, time: int) -> Trajectory:
    """The definition: one step after the other."""
    now = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, time, 0), (system.x, system.starts, system.mask))

    def step(h: Array, now: tuple) -> tuple[Array, Array]:
        x, start, keep = now
        before = h if start is None else jnp.where(_wide(start, h), 0, h)
        after = cell.step(system.params, x, before).astype(h.dtype)
        after = after if keep is None else jnp.where(_wide(keep, h), after, before)
        return after, after

    _, states = lax.scan(step, system.h0, now)
    batch = system.h0.shape[:time]
    return Trajectory(jnp.moveaxis(states, 0, time), jnp.zeros(batch, jnp.int32), jnp.ones(batch, bool))


def _wide(flags: Array, h: Array) -> Array:
    return flags.reshape(*flags.shape, *(1,) * (h.ndim - flags.ndim))


def _marked(cell: Cell, solver: Solver, found: Trajectory) -> Array:
    """Sequences that missed the tolerance as NaN, gradients through them included; or reported by checkify."""
    if solver.failure == "check":
        checkify.check(
            found.converged.all(),
            "newton_solve: {missed} of {all} sequences missed the tolerance; allow more iterations, damp, or use windows",
            missed=(~found.converged).sum(),
            all=jnp.int32(found.converged.size),
        )
        return found.states
    factor = jnp.where(found.converged, 1, jnp.nan).astype(found.states.dtype)
    return found.states * factor.reshape(*factor.shape, *(1,) * (found.states.ndim - factor.ndim))


def _check_method(solver: Solver, impl: str) -> None:
    if impl not in ("auto", "sequential", "associative") and solver.method in ("elk", "quasi_elk"):
        raise ValueError(f"impl={impl!r}: method={solver.method!r} has none; use impl='associative', with windows")


def _system(
    cell: Cell,
    params: Any,
    x: Any,
    h0: Array | None,
    axis: int,
    reverse: bool,
    segment_ids: Array | None,
    mask: Array | None,
    guess: Array | None,
    chunk: int,
) -> tuple[System, Array | None, Any, int]:
    """(the equations in the carry dtype, forward in time; the guess; the dtype of outputs; the time axis)."""
    params, x = jax.tree.map(jnp.asarray, (params, x))
    lead, time = _lead(x, axis)
    floating = [leaf.dtype for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    also = [leaf.dtype for leaf in jax.tree.leaves((params, h0)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    wide = jnp.result_type(jnp.float32, *floating, *also)
    dtype = jnp.result_type(*floating) if floating else wide

    def widened(leaf: Array) -> Array:
        return leaf.astype(wide) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def flipped(leaf: Array) -> Array:
        return jnp.flip(leaf, time) if reverse else leaf

    for name, flags in (("segment_ids", segment_ids), ("mask", mask)):
        if flags is not None and not (
            flags.ndim == len(lead) and flags.shape[time] == lead[time] and _fits(flags, lead)
        ):
            raise ValueError(f"{name} must be shaped like batch and time of x, {lead}, got {flags.shape}")
    batch = lead[:time]
    for name, array, shape in (("h0", h0, (*batch, *cell.state)), ("guess", guess, (*lead, *cell.state))):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {array.shape}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")
    params, x = jax.tree.map(widened, (params, jax.tree.map(flipped, x)))
    h0 = jnp.zeros((*batch, *cell.state), wide) if h0 is None else h0.astype(wide)
    guess = None if guess is None else lax.stop_gradient(flipped(guess).astype(wide))
    starts = None
    if segment_ids is not None:
        ids = jnp.broadcast_to(flipped(segment_ids), lead)
        starts = affine.starts(ids, axis=time, reverse=False)
    mask = None if mask is None else jnp.broadcast_to(flipped(mask), lead).astype(bool)
    after = jax.eval_shape(cell.step, params, x, jax.ShapeDtypeStruct((*lead, *cell.state), wide))
    if after.shape != (*lead, *cell.state):
        raise ValueError(f"cell.step must return states {(*lead, *cell.state)}, got {after.shape}")
    return System(params, x, h0, starts, mask), guess, dtype, time


def _lead(x: Any, axis: int) -> tuple[tuple[int, ...], int]:
    """(the shape of batch and time of x, the time axis)."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(x)]
    if not shapes:
        raise ValueError("x must hold at least one array: its shape says how many steps there are")
    times = {axis if axis >= 0 else axis + len(shape) for shape in shapes}
    time = min(times)
    if len(times) > 1 or not all(0 <= time < len(shape) for shape in shapes):
        raise ValueError(f"axis={axis} is not one and the same time axis of every leaf of x: {shapes}")
    lead = shapes[0][: time + 1]
    if any(shape[: time + 1] != lead for shape in shapes):
        raise ValueError(f"leaves of x must share batch and time axes, got {shapes}")
    if 0 in lead:
        raise ValueError(f"x must not be empty, got {shapes}")
    return lead, time


def _fits(flags: Array, lead: tuple[int, ...]) -> bool:
    return all(n in (1, m) for n, m in zip(flags.shape, lead, strict=True))

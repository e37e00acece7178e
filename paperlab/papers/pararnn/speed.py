"""Claim 6: speed. Timed on an H100 alone; on a CPU only the steps that wait for each other are counted.

Times are medians of interleaved samples in one process, forward pass only, float32, the inputs of the gates given.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kernels_pallas import newton_gru, newton_lstm
from kernels_pallas.bench import timing
from paperlab.evidence import Laboratory, Outcome
from paperlab.layers.recurrent_cell import recipe
from paperlab.recurrence import newton_solve, pictures

ROWS, WIDTH, LENGTH = 8, 1024, 512
LENGTHS = (64, 128, 256, 512, 1024)


def dependent_steps(lab: Laboratory) -> Outcome:
    """Steps that wait for each other in three iterations over 1024 places, against those of the recurrence."""
    del lab
    newton = partial(pictures.newton, iterations=3)
    found = {n: pictures.depth(newton, n) for n in LENGTHS}
    return Outcome(found[1024], 1024, details={"by_length": {str(n): steps for n, steps in found.items()}})


def inputs(cell: str, rows: int, length: int, width: int) -> dict[str, Array]:
    """What `run` takes: the inputs of the gates, bias included, and library weights."""
    made = recipe(cell, width)
    weights, x = jax.random.split(jax.random.key(0))
    fed = jax.random.normal(x, (rows, length, made.inputs, width), jnp.float32) + made.bias()
    return {"x": fed, **made.init(weights)}


@partial(jax.jit, static_argnums=(0, 1))
def run(cell: str, how: str, arrays: dict[str, Array]) -> Array:
    """The outputs [rows, T, width]: "fused" (one kernel), "parallel" (plain XLA), or "sequential" (lax.scan)."""
    x, params = arrays["x"], {name: a for name, a in arrays.items() if name != "x"}
    if how == "fused":
        return newton_gru(x, params["a"])[0] if cell == "gru" else newton_lstm(x, params["a"], params["p"])[0][1]
    impl = {"parallel": "associative", "sequential": "sequential"}[how]
    return newton_solve(recipe(cell, x.shape[-1]).cell, params, x, axis=1, impl=impl).outputs


def _call(cell: str, how: str, arrays: dict[str, Array], number: int) -> Array:
    del number  # of the input set: there is one
    return run(cell, how, arrays)


def times(calls: Mapping[str, Callable[[int], Any]], plan: timing.Plan) -> dict[str, float]:
    """Median milliseconds of every call, compiled before."""
    for call in calls.values():
        jax.block_until_ready(call(0))
    found = timing.interleaved(calls, plan, jax.block_until_ready)
    return {label: timing.median(values) for label, values in found.items()}


def at_one_length(
    lab: Laboratory, cell: str, *, rows: int = ROWS, length: int = LENGTH, width: int = WIDTH, plan: Any = None
) -> dict[str, float]:
    """Milliseconds of the three ways to run a cell."""

    def measure() -> dict[str, float]:
        arrays = inputs(cell, rows, length, width)
        ways = ("fused", "parallel", "sequential")
        calls = {how: partial(_call, cell, how, arrays) for how in ways}
        return times(calls, plan or timing.Plan())

    return lab.once(f"times {cell}", measure)


def speedup(lab: Laboratory, cell: str, slow: str) -> Outcome:
    """How many times as long the slower way takes as the fused kernel."""
    found = at_one_length(lab, cell)
    scale = f"batch {ROWS}, d={WIDTH}, L={LENGTH}, float32, forward"
    return Outcome(found[slow] / found["fused"], details={"milliseconds": found, "scale": scale})


def flat_in_length(lab: Laboratory, *, rows: int = 1, width: int = 128, plan: Any = None) -> Outcome:
    """The slope of log time over log length of the fused kernel up to 1024 steps, the larger of both cells; a loop has 1."""
    del lab
    found: dict[str, dict[str, float]] = {}
    for cell in ("gru", "lstm"):
        arrays = {str(n): inputs(cell, rows, n, width) for n in LENGTHS}
        calls = {label: partial(_call, cell, "fused", own) for label, own in arrays.items()}
        found[cell] = times(calls, plan or timing.Plan())
    slopes = {cell: float(np.polyfit(np.log(LENGTHS), np.log(list(row.values())), 1)[0]) for cell, row in found.items()}
    return Outcome(
        max(slopes.values()), details={"slopes": slopes, "milliseconds": found, "rows": rows, "width": width}
    )

"""The two solvers as operations: examples, benchmark cases, floors."""

from collections.abc import Callable
from functools import partial
from itertools import product
from math import ceil, log2
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.newton import api, hopper, tpu
from kernels_pallas.newton.core import GRU, LSTM, Cell
from kernels_pallas.op import Case, Floor, Op
from kernels_pallas.platforms import Support

ITERATIONS = 3

# The first is the row of the floors' table; then a wide type, ParaRNN's own sizes, and few channels over long time.
CASES = (
    {"B": 8, "T": 4096, "D": 2048, "dtype": "bfloat16"},
    {"B": 8, "T": 4096, "D": 2048, "dtype": "float32"},
    {"B": 8, "T": 512, "D": 1024, "dtype": "float32"},
    {"B": 1, "T": 32768, "D": 1024, "dtype": "bfloat16"},
)
SMALL = (
    {"B": 2, "T": 1, "D": 8, "dtype": "float32"},
    {"B": 1, "T": 37, "D": 130, "dtype": "float32"},
    {"B": 2, "T": 24, "D": 16, "dtype": "float32", "start": 1},
    {"B": 1, "T": 21, "D": 5, "dtype": "bfloat16", "start": 1},
)


def _example(cell: Cell, case: Case, key: Any) -> tuple[Array | None, ...]:
    """(x, a, h0) or (x, a, p, c0, h0); recurrent weights within ParaRNN's bound of 0.5, states where the case has "start"."""
    B, T, D, dtype = (case[name] for name in ("B", "T", "D", "dtype"))
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (B, T, 3, D), dtype)
    w = 0.5 * jax.random.truncated_normal(keys[1], -1, 1, (cell.weights, D))
    states = 0.5 * jax.random.normal(keys[2], (cell.states, B, D)) if case.get("start") else (None,) * cell.states
    return x, w[:3], *([w[3:]] if cell.weights > 3 else []), *states


def _configs(cell: Cell, case: Case, platform: str) -> tuple[Any, ...]:
    first = api.default(cell, platform, case)
    others: list[Any] = hopper.candidates(cell, jnp.dtype(case["dtype"]).itemsize)
    if platform == "tpu":
        others = [tpu.Config(*sizes) for sizes in product((256, 512, 1024), (16, 32, 64), (128, 256))]
    return tuple(dict.fromkeys((first, *others)))


def _floor(cell: Cell, case: Case, which: str) -> Floor:
    """Forward: gate inputs read, states written. Backward: both and the states' cotangents read, those of the inputs written."""
    elements = case["B"] * case["T"] * case["D"]
    inputs, states = 3 * jnp.dtype(case["dtype"]).itemsize * elements, 4 * cell.states * elements
    flops = {1: 38, 2: 62}[cell.states] * elements
    reduction = ceil(log2(case["T"])) + 1
    if which == "forward":
        return Floor(inputs + states, flops * (ITERATIONS + 2), reduction * ITERATIONS + 2)
    return Floor(3 * inputs + 3 * states, flops * (ITERATIONS + 5), reduction * (ITERATIONS + 1) + 3)


def _supports(platform: str, x: Array, *others: Any) -> Support:
    return api.supports(platform, x)


def _op(cell: Cell, run: Callable[..., Any]) -> Op:
    return Op(
        name=f"newton_{cell.name}",
        run=run,
        example=partial(_example, cell),
        cases=CASES,
        small=SMALL,
        supports=_supports,
        configs=partial(_configs, cell),
        floor=partial(_floor, cell),
    )


OPS = {"newton_gru": _op(GRU, api.newton_gru), "newton_lstm": _op(LSTM, api.newton_lstm)}

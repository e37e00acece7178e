"""What `plstm_grid` tells about itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.op import Case, Floor, Op
from kernels_pallas.plstm.api import Config, plstm_grid, supports


def example(case: Case, key: Any) -> tuple[Array | None, ...]:
    """Gates as pLSTM's layers draw them: "P", an angle and a decay at every node; "D", no dl. States enter where "edges" is 1."""
    B, H, X, Y, DK, DV = (case[name] for name in ("B", "H", "X", "Y", "DK", "DV"))
    keys = iter(jax.random.split(key, 12))
    dtype = jnp.dtype(case["dtype"])
    q, k, v = (jax.random.normal(next(keys), (B, H, X, Y, D)).astype(dtype) for D in (DK, DK, DV))
    source, mark_l, mark_u, direct, decay, angle = (jax.random.uniform(next(keys), (B, H, X, Y)) for _ in range(6))
    decay = 1 - 0.1 * decay
    right, down = (angle, 1 - angle) if case["mode"] == "P" else (jnp.ones_like(angle), jnp.ones_like(angle))
    gates = [source * right, source * down, decay * right, decay * right, decay * down, decay * down]
    if case["mode"] == "D":
        gates[4] = None  # type: ignore[call-overload]
    edges: list[Array | None] = [None, None]
    if case["edges"]:
        edges = [jax.random.normal(next(keys), (B, H, length, DK, DV)) for length in (Y, X)]
    return (q, k, v, *gates, mark_l, mark_u, direct, *edges)


def configs(case: Case, platform: str) -> list[Config]:
    """Tiles worth measuring."""
    return [Config(tile) for tile in (8, 4, 12 if platform == "hopper" else 16)]


def floor(case: Case, which: str) -> Floor:
    """Every array once; the operations of walking node by node with the states at hand; steps from corner to corner.

    With gradients: inputs and cotangents of the outputs read, gradients written, and three times the operations.
    """
    B, H, X, Y, DK, DV = (case[name] for name in ("B", "H", "X", "Y", "DK", "DV"))
    nodes, width = B * H * X * Y, jnp.dtype(case["dtype"]).itemsize
    inputs = nodes * ((2 * DK + DV) * width + 9 * 4)
    outputs = nodes * DV * width
    states = B * H * (X + Y) * DK * DV * 4
    inputs += states * case["edges"]
    flops, steps = nodes * 16 * DK * DV, X + Y - 1
    if which == "forward":
        return Floor(inputs + outputs + states, flops, steps)
    return Floor(3 * inputs + 2 * (outputs + states), 3 * flops, 2 * steps)


def _case(B: int, H: int, X: int, Y: int, DK: int, DV: int, dtype: str, mode: str = "P", edges: int = 0) -> Case:
    return {"B": B, "H": H, "X": X, "Y": Y, "DK": DK, "DV": DV, "dtype": dtype, "mode": mode, "edges": edges}


OP = Op(
    name="plstm_grid",
    run=plstm_grid,
    example=example,
    cases=(
        _case(64, 6, 14, 14, 64, 64, "bfloat16"),  # pLSTM-S, images of 224 in patches of 16
        _case(64, 6, 14, 14, 64, 64, "float32", "D"),
        _case(4, 12, 64, 64, 64, 64, "bfloat16", "D", 1),
        _case(1, 8, 128, 128, 64, 128, "bfloat16"),
    ),
    small=(
        _case(1, 1, 1, 1, 4, 4, "float32", "P", 1),
        _case(2, 1, 5, 3, 4, 6, "float32"),
        _case(1, 2, 9, 10, 4, 8, "float32", "P", 1),
        _case(1, 1, 1, 7, 8, 4, "float32", "D", 1),
        _case(1, 1, 10, 4, 8, 8, "bfloat16", "D", 1),
    ),
    supports=supports,
    configs=configs,
    floor=floor,
)

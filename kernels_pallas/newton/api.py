"""Nonlinear recurrences solved in parallel over time (ParaRNN, arXiv 2510.21450, sections 2, 3 and appendix D.2).

    newton_gru     h_t = (1 - z) h_{t-1} + z c                              channels do not mix: the Jacobian is diagonal
    newton_lstm    c_t = f c_{t-1} + (1 - f) z,  h_t = o tanh(c_t)          2 x 2 diagonal blocks

The trajectory is the root of f(h_{t-1}, x_t) - h_t. From the guess f(0, x_t) every Newton step takes residual and exact Jacobian at
all positions of a time tile and solves its linear system by a reduction of affine maps; the last state goes on to the next tile.
After k steps the first k positions of a tile are exact (k + 1 where the state before is zero), three steps reach rounding
where the recurrent weights are below about 0.5. The residual says how far the result is from the recurrence: look at it.

    impl        steps in time                        what it is
    reference   T                                    lax.scan, the definition; `iterations` is not used
    chunked     T/time * iterations * log2 time      plain JAX
    pallas      T/tile * iterations * (in a tile)    one kernel for guess, all Newton steps and residual (TPU, Hopper)
    interpret                                        the TPU kernel on any device, for tests
    auto                                             the kernel where there is one, else chunked

Gradients: one reverse linear solve (`linear_scan`, `block2_scan`) at the trajectory found and one pullback of the step; their
memory does not depend on `iterations`. They are those of the recurrence where the residual is small. bfloat16 inputs are computed
with in float32.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from kernels_pallas.configs import tuned
from kernels_pallas.newton import hopper, tpu
from kernels_pallas.newton.core import DOCUMENTS, GRU, LSTM, Cell, State, marked
from kernels_pallas.newton.solve import ChunkedConfig, Route, solve
from kernels_pallas.platforms import YES, Support, choose, no

Config = tpu.Config | hopper.Config | ChunkedConfig


def newton_gru(
    x: Array,
    a: Array,
    h0: Array | None = None,
    *,
    starts: Array | None = None,
    iterations: int = 3,
    impl: str = "auto",
    config: Config | None = None,
) -> tuple[Array, Array]:
    """Runs ParaGRU: z = s(a_z h + x_z), r = s(a_r h + x_r), c = tanh(a_c (h r) + x_c), h' = (1 - z) h + z c.

    Args:
      x: inputs of the gates z, r, c, bias included, [B, T, 3, D].
      a: recurrent weights of the same gates, [3, D].
      h0: the state before the first step [B, D]; zeros if omitted.
      starts: integers or bool [B, T]; where not zero, a document starts and the state is reset to zero before the step.
      iterations: Newton steps in each time tile, 0 or more.
      impl: "auto", "reference", "chunked", "pallas" or "interpret".
      config: tile sizes, of the implementation's own type; measured ones if omitted.

    Returns:
      h [B, T, D] in float32 (float64 for a float64 x), so that h[:, -1] continues the sequence exactly, and the residual [B]
      float32, max over time and channels of |f(h_{t-1}, x_t) - h_t|. The residual is not differentiated.

    Raises:
      ValueError: shapes that do not fit, an empty x, a dtype that is not real, an unknown `impl`, a negative `iterations`, a
        `config` of another implementation, or a kernel that is asked for and does not take these arguments.
    """
    (h,), residual = _run(GRU, "newton_gru", x, {"a": a}, {"h0": h0}, starts, iterations, impl, config)
    return h, residual


def newton_lstm(
    x: Array,
    a: Array,
    p: Array,
    c0: Array | None = None,
    h0: Array | None = None,
    *,
    starts: Array | None = None,
    iterations: int = 3,
    impl: str = "auto",
    config: Config | None = None,
) -> tuple[tuple[Array, Array], Array]:
    """Runs ParaLSTM: f = s(a_f h + x_f + p_f c), z = tanh(a_c h + x_c), c' = f c + (1 - f) z, o = s(a_o h + x_o + p_o c'),
    h' = o tanh(c').

    Args:
      x: inputs of the gates f, o, c, bias included, [B, T, 3, D].
      a: recurrent weights of the same gates, [3, D].
      p: peepholes of f (on c) and o (on c'), [2, D].
      c0, h0: the state before the first step, [B, D] each; zeros if omitted.
      starts, iterations, impl, config: as in `newton_gru`.

    Returns:
      (c, h), each [B, T, D] in float32 (float64 for a float64 x), and the residual [B] float32, the larger of both.

    Raises:
      ValueError: as `newton_gru`.
    """
    weights, start = {"a": a, "p": p}, {"c0": c0, "h0": h0}
    found, residual = _run(LSTM, "newton_lstm", x, weights, start, starts, iterations, impl, config)
    return (found[0], found[1]), residual


def supports(platform: str, x: Array) -> Support:
    """Whether the kernel of a platform takes these inputs."""
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return no(f"x is {x.dtype}, the kernels take float32 and bfloat16")
    return YES


def default(cell: Cell, how: str, case: dict[str, Any]) -> Config | None:
    """Tile sizes where none were measured; None for the reference."""
    if how in ("tpu", "interpret"):
        return tpu.Config()
    if how == "hopper":
        return hopper.default(cell, case["B"], case["D"], jnp.dtype(case["dtype"]).itemsize)
    return ChunkedConfig() if how == "chunked" else None


def _run(
    cell: Cell,
    name: str,
    x: Array,
    weights: dict[str, Array],
    start: dict[str, Array | None],
    starts: Array | None,
    iterations: int,
    impl: str,
    config: Config | None,
) -> tuple[State, Array]:
    check(name, x, weights, start)
    if starts is not None and (starts.shape != x.shape[:2] or jnp.issubdtype(starts.dtype, jnp.floating)):
        raise ValueError(f"{name}: starts must be integers {x.shape[:2]}, got {starts.dtype} {starts.shape}")
    if iterations < 0:
        raise ValueError(f"{name}: iterations={iterations} must not be negative")
    how = choose(name, impl, lambda platform: supports(platform, x))
    B, T, _, D = x.shape
    case = {"B": B, "T": T, "D": D, "dtype": str(x.dtype)}
    usual = default(cell, how, case)
    if config is None:
        config = None if usual is None else tuned(name, case, usual)
    elif type(config) is not type(usual):
        wanted = "no config" if usual is None else f"a {type(usual).__module__}.{type(usual).__qualname__}"
        raise ValueError(f"{name}: impl {how!r} takes {wanted}, got {config!r}")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    w = tuple(row.astype(wide) for group in weights.values() for row in group)
    states = tuple(jnp.zeros((B, D), wide) if s is None else s.astype(wide) for s in start.values())
    if starts is not None:
        cell, x = DOCUMENTS[cell], marked(cell, x, starts)
    return solve(cell, Route(how, iterations, config), x, w, states)


def check(name: str, x: Array, weights: dict[str, Array], start: dict[str, Array | None]) -> None:
    """Raises ValueError where an argument does not fit to x."""
    if x.ndim != 4 or x.shape[2] != 3:
        raise ValueError(f"{name}: x must be [B, T, 3, D], got {x.shape}")
    if 0 in x.shape:
        raise ValueError(f"{name}: x must not be empty, got {x.shape}")
    B, _, _, D = x.shape
    wanted = {"a": (3, D), "p": (2, D), "c0": (B, D), "h0": (B, D)}
    arrays = {"x": x, **weights, **start}
    for key, array in arrays.items():
        if array is None:
            continue
        if key != "x" and array.shape != wanted[key]:
            raise ValueError(f"{name}: {key} must be {wanted[key]} to fit x {x.shape}, got {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: {key} must be real floating point, got {array.dtype}")

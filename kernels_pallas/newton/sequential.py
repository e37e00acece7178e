"""The baseline that Newton's method has to beat: the same cells step by step in one kernel, which reads inputs and writes states
once and waits T times for a step. Forward only, for measurements.
"""

from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax import numpy as jnp

from kernels_pallas.compat import mosaic_gpu, pallas_tpu, pl
from kernels_pallas.newton import reference
from kernels_pallas.newton.api import check, supports
from kernels_pallas.newton.core import GRU, LSTM, Cell, State
from kernels_pallas.platforms import choose

TIME = 32  # positions of a tile
LANES = 128
ALIGNED = 8


def fused_sequential_gru(x: Array, a: Array, h0: Array | None = None, *, impl: str = "auto") -> Array:
    """`newton_gru` step by step: x [B, T, 3, D], a [3, D], h0 [B, D] -> h [B, T, D] float32. Not differentiable in a kernel.

    Raises:
      ValueError: shapes that do not fit, an unknown `impl`, or a kernel that is asked for and does not take these arguments.
    """
    check("fused_sequential_gru", x, {"a": a}, {"h0": h0})
    return _run(GRU, x, tuple(a), (h0,), impl)[0]


def fused_sequential_lstm(
    x: Array, a: Array, p: Array, c0: Array | None = None, h0: Array | None = None, *, impl: str = "auto"
) -> tuple[Array, Array]:
    """`newton_lstm` step by step: (c, h). Raises as `fused_sequential_gru`."""
    check("fused_sequential_lstm", x, {"a": a, "p": p}, {"c0": c0, "h0": h0})
    c, h = _run(LSTM, x, (*a, *p), (c0, h0), impl)
    return c, h


def _run(cell: Cell, x: Array, w: State, start: tuple[Array | None, ...], impl: str) -> State:
    how = choose(f"fused_sequential_{cell.name}", impl, lambda platform: supports(platform, x))
    B, T, _, D = x.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    w = tuple(v.astype(wide) for v in w)
    states = tuple(jnp.zeros((B, D), wide) if s is None else s.astype(wide) for s in start)
    if how in ("reference", "chunked"):
        return reference.sequential(cell, x, w, states)
    time, width = -(-T // TIME) * TIME, -(-D // LANES) * LANES
    x = jnp.pad(x, ((0, 0), (0, time - T), (0, 0), (0, width - D)))
    weights, first = (jnp.pad(jnp.stack(v, -2), ((0, 0),) * n + ((0, width - D),)) for v, n in ((w, 1), (states, 2)))
    out = [jax.ShapeDtypeStruct((B, time, width), jnp.float32)] * cell.states
    found = on_hopper(cell, x, weights, first, out) if how == "hopper" else _on_tpu(cell, x, weights, first, out, how)
    return tuple(h[:, :T, :D] for h in found)


def _on_tpu(cell: Cell, x: Array, weights: Array, first: Array, out: list[Any], how: str) -> Any:
    B, T, _, D = x.shape
    tiles = D // LANES
    channels = LANES * next(n for n in (8, 4, 2, 1) if tiles % n == 0)
    tiles = D // channels

    def gate(number: int) -> Any:
        return pl.BlockSpec((1, TIME, channels), lambda b, d, t: (b, t, number * tiles + d))

    flat = x.reshape(B, T, 3 * D)
    return pl.pallas_call(
        partial(_tpu_body, cell),
        grid=(B, tiles, T // TIME),
        in_specs=[
            *(gate(number) for number in range(3)),
            pl.BlockSpec((cell.weights, channels), lambda b, d, t: (0, d)),
            pl.BlockSpec((1, cell.states, channels), lambda b, d, t: (b, 0, d)),
        ],
        out_specs=[pl.BlockSpec((1, TIME, channels), lambda b, d, t: (b, t, d))] * cell.states,
        out_shape=out,
        scratch_shapes=[pallas_tpu.VMEM((cell.states, 1, channels), jnp.float32)],
        compiler_params=pallas_tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=how == "interpret",
        name=f"sequential_{cell.name}",
    )(flat, flat, flat, weights, first)


def _tpu_body(cell: Cell, *refs: Any) -> None:
    (*gates, weights, first), states, carry = refs[:5], refs[5:-1], refs[-1]
    w = tuple(weights[i : i + 1, :] for i in range(cell.weights))

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for k in range(cell.states):
            carry[k] = first[0, k : k + 1, :]

    # Sixteen rows at once: bfloat16 lies in memory in such groups.
    def group(m: Any, before: State) -> State:
        rows = pl.ds(pl.multiple_of(m * 16, 16), 16)
        x = tuple(ref[0, rows, :].astype(jnp.float32) for ref in gates)
        found = []
        for t in range(16):
            before = cell.step(tuple(v[t : t + 1] for v in x), w, before)
            found.append(before)
        for ref, parts in zip(states, zip(*found, strict=True), strict=True):
            ref[0, rows, :] = jnp.concatenate(parts, axis=0)
        return before

    last = lax.fori_loop(0, TIME // 16, group, tuple(carry[k] for k in range(cell.states)))
    for k, value in enumerate(last):
        carry[k] = value


def on_hopper(cell: Cell, x: Array, weights: Array, first: Array, out: list[Any], interpret: Any = None) -> Any:
    """States [B,T,D] each; T a multiple of TIME, D of 128. Every thread owns a channel and walks all of time."""
    B, _, _, D = x.shape
    return mosaic_gpu.kernel(
        partial(_hopper_body, cell, x.shape[1] // TIME),
        out_type=out,
        scratch_types=[
            mosaic_gpu.SMEM((2, TIME, 3, LANES), x.dtype),
            [mosaic_gpu.SMEM((2, TIME, LANES), jnp.float32) for _ in range(cell.states)],
            mosaic_gpu.Barrier(num_barriers=2),
        ],
        grid=(B, D // LANES),
        grid_names=("batch", "channels"),
        interpret=interpret,
    )(x, weights, first)


def _hopper_body(cell: Cell, tiles: int, *refs: Any) -> None:
    (x, weights, first), states, (read, written, loaded) = refs[:3], refs[3 : 3 + cell.states], refs[3 + cell.states :]
    row, channels = lax.axis_index("batch"), pl.ds(lax.axis_index("channels") * LANES, LANES)

    def load(t: Any) -> None:
        slot = lax.rem(t, 2)
        mosaic_gpu.copy_gmem_to_smem(x.at[row, pl.ds(t * TIME, TIME), :, channels], read.at[slot], loaded.at[slot])

    load(jnp.int32(0))
    w = tuple(weights[i, channels] for i in range(cell.weights))

    def tile(t: Any, before: State) -> State:
        @pl.when(t + 1 < tiles)
        def _() -> None:
            load(t + 1)

        slot = lax.rem(t, 2)
        mosaic_gpu.barrier_wait(loaded.at[slot])
        mosaic_gpu.wait_smem_to_gmem(cell.states, wait_read_only=True)

        def step(s: Any, before: State) -> State:
            after = cell.step(tuple(read[slot, s, g].astype(jnp.float32) for g in range(3)), w, before)
            for ref, value in zip(written, after, strict=True):
                ref[slot, s] = value
            return after

        before = lax.fori_loop(0, TIME, step, before)
        mosaic_gpu.commit_smem()
        for source, target in zip(written, states, strict=True):
            mosaic_gpu.copy_smem_to_gmem(source.at[slot], target.at[row, pl.ds(t * TIME, TIME), channels])
        return before

    layout = mosaic_gpu.Layout.WG_STRIDED((LANES,), 1)
    lax.fori_loop(
        0, tiles, tile, tuple(mosaic_gpu.layout_cast(first[row, k, channels], layout) for k in range(cell.states))
    )
    mosaic_gpu.wait_smem_to_gmem(0)

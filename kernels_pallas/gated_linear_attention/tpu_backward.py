"""The backward kernel of GLA on a TPU: one pass from the last chunk to the first, after the states were computed again.

    dP = dO V^T where seen,     dQ = (dO S_n^T) * start + [dP through the weights],   dK = (V dS^T) * end + [dP through them]
    dV = P^T dO + (K * end) dS,   dS_n = gamma * dS_n+1 + (Q * start)^T dO
    d log a_t = sum_{i>=t} (q_i * dq_i - k_i * dk_i) + rowsum_V(S_n+1 * dS_n+1),   i inside the chunk and the run of t

The last term is all that lies behind the chunk; the step before leaves it in VMEM, beside dS. (arXiv 2312.06635, section 4.3)
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.compat import pallas_tpu, pl
from kernels_pallas.gated_linear_attention import tpu_layout as layout
from kernels_pallas.gated_linear_attention.core import NN, NT, TN, dot, gate_gradient, times, weights_backward
from kernels_pallas.gated_linear_attention.inputs import Inputs
from kernels_pallas.gated_linear_attention.tpu_forward import (
    Operands,
    decay_of,
    is_scalar,
    operand_specs,
    operands,
    states,
)
from kernels_pallas.gated_linear_attention.tpu_layout import Grid


class Given(NamedTuple):
    """What the forward pass left, and cotangents; arrays, their specifications or blocks."""

    before: Any  # states before the chunks [B,H,N,V,K]
    last: Any  # the last state [B,H,V,K]
    do: Any
    dlast: Any  # [B,H,V,K]


class Gradients(NamedTuple):
    """Cotangents, still one for each head and value tile."""

    q: Any
    k: Any
    v: Any
    log_alpha: Any
    state: Any


def backward(x: Inputs, last: Array, do: Array, dlast: Array, g: Grid, interpret: Any) -> Inputs:
    """Cotangents of `x` from those of o [B,T,H,V] and of the last state [B,H,V,K]."""
    given = Given(states(x, g, interpret), last, layout.tokens(do, g.tile, g.C), dlast)
    g = g._replace(backward=True)
    state, value = layout.state_spec(g), layout.tokens_spec(g, g.H, g.V, g.tile, layout.own_tile)
    (d,) = pl.pallas_call(
        partial(_gradients, g, is_scalar(x)),
        grid=g.shape,
        in_specs=[operand_specs(x, g), Given(layout.states_spec(g), state, value, state)],
        out_shape=(_shapes(x, g),),
        out_specs=(_specs(x, g),),
        scratch_shapes=[pallas_tpu.VMEM((g.tile, g.K), jnp.float32), pallas_tpu.VMEM((1, g.K), jnp.float32)],
        compiler_params=layout.parameters(),
        interpret=interpret,
        name="gla_backward",
    )(operands(x, g), given)
    return _summed(d, x, g)


def _gradients(g: Grid, scalar: bool, x: Operands, given: Given, out: Gradients, dS_ref: Any, behind_ref: Any) -> None:
    n = pl.program_id(3)

    @pl.when(n == 0)
    def _():
        dS_ref[...] = given.dlast[...]
        behind_ref[...] = jnp.sum(given.last[...] * given.dlast[...], axis=0, keepdims=True)

    q, k, v, do, d = x.q[...], x.k[...], x.v[...], given.do[...], decay_of(x, g)
    S, dS, dtype = given.before[...], dS_ref[...], k.dtype
    P, dq, dk = weights_backward(dot(do, v, NT, dtype), q, k, d)
    dq += times(dot(do, S, NN, dtype), d.start)
    dk += times(dot(v, dS, NN, dtype), d.end)
    dv = dot(P, do, TN, dtype) + dot(times(k, d.end), dS, NT, dtype)
    for ref, value in ((out.q, dq), (out.k, dk), (out.v, dv)):
        ref[...] = value.astype(ref.dtype)
    if out.log_alpha is not None:
        run = None if x.run is None else x.run[...]
        out.log_alpha[...] = gate_gradient(q * dq - k * dk, behind_ref[...], run, scalar)
    dS = times(dS, d.gamma) + dot(do, times(q, d.start), TN, dtype)
    dS_ref[...] = dS
    behind_ref[...] = jnp.sum(S * dS, axis=0, keepdims=True)

    if out.state is not None:

        @pl.when(n == g.N - 1)
        def _():
            out.state[...] = dS_ref[...]


def _shapes(x: Inputs, g: Grid) -> Gradients:
    parts = g.H * g.J

    def shape(M: int, D: int, width: int, whole: bool, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(layout.tokens_shape(g, M, D, width), dtype if whole else jnp.float32)

    gate = shape(parts, g.K, g.K, False, None)
    if is_scalar(x):
        gate = jax.ShapeDtypeStruct((g.B, parts, g.N, 1, g.C), jnp.float32)
    return Gradients(
        shape(parts, g.K, g.K, g.J == 1, x.q.dtype),
        shape(parts, g.K, g.K, parts == g.G, x.k.dtype),
        shape(g.H, g.V, g.tile, g.R == 1, x.v.dtype),
        None if x.log_alpha is None else gate,
        None if x.state is None else jax.ShapeDtypeStruct((g.B, g.H, g.V, g.K), jnp.float32),
    )


def _specs(x: Inputs, g: Grid) -> Gradients:
    key = layout.tokens_spec(g, g.H * g.J, g.K, g.K, layout.part)
    value = layout.tokens_spec(g, g.H, g.V, g.tile, layout.own_tile)
    gate = layout.rows_spec(g, layout.part) if is_scalar(x) else key
    state = layout.state_spec(g)
    return Gradients(key, key, value, None if x.log_alpha is None else gate, None if x.state is None else state)


def _summed(d: Gradients, x: Inputs, g: Grid) -> Inputs:
    """Sums over what shared an operand: value tiles, heads of a group."""
    B, T, G, R, J, K, V = g.B, g.T, g.G, g.R, g.J, g.K, g.V
    dq, dk = (layout.from_tokens(a, g, g.H * J, K, K).reshape(B, T, G, R, J, K) for a in (d.q, d.k))
    dv = layout.from_tokens(d.v, g, g.H, V, g.tile).reshape(B, T, G, R, V)
    dlog_alpha, dstate = None, None
    if d.log_alpha is not None:
        wide = (
            layout.from_rows(d.log_alpha, T)[..., None]
            if is_scalar(x)
            else layout.from_tokens(d.log_alpha, g, g.H * J, K, K)
        )
        dlog_alpha = wide.reshape(B, T, G, R * J, -1).sum(3)
        if x.run is not None:
            starts = jnp.diff(x.run, axis=1, prepend=0) != 0
            dlog_alpha = jnp.where(starts[:, :, None, None], 0, dlog_alpha)
    if x.state is not None:
        dstate = d.state.swapaxes(2, 3).reshape(x.state.shape)
    dk, dv = dk.sum((3, 4)).astype(x.k.dtype), dv.sum(3).astype(x.v.dtype)
    return Inputs(dq.sum(4).astype(x.q.dtype), dk, dv, dlog_alpha, None, dstate, None)

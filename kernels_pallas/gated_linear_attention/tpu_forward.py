"""The forward kernels of GLA on a TPU: outputs and last state; or the state before every chunk, for the backward pass.

o_t = (q_t * start_t) S_n + P V,   S_n+1 = gamma * S_n + (K * end)^T V        (core.py; states are held transposed)
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.compat import pallas_tpu, pl
from kernels_pallas.gated_linear_attention import tpu_layout as layout
from kernels_pallas.gated_linear_attention.core import NN, NT, TN, Decay, decay, dot, times, weights
from kernels_pallas.gated_linear_attention.inputs import Inputs
from kernels_pallas.gated_linear_attention.tpu_layout import Grid


class Operands(NamedTuple):
    """Arrays, their block specifications, or the blocks in a kernel; None where the call has none."""

    q: Any
    k: Any
    v: Any
    log_alpha: Any
    run: Any
    state: Any


def operands(x: Inputs, g: Grid) -> Operands:
    """The arrays of `x` as tpu_layout.py says."""
    q = layout.tokens(x.q.reshape(g.B, g.T, g.H, g.K), g.K, g.C)
    k, v = layout.tokens(x.k, g.K, g.C), layout.tokens(x.v, g.tile, g.C)
    log_alpha = x.log_alpha
    if log_alpha is not None:
        log_alpha = layout.rows(log_alpha[..., 0], g.C) if is_scalar(x) else layout.tokens(log_alpha, g.K, g.C)
    run = None if x.run is None else layout.run_rows(x.run, g.C)
    state = None if x.state is None else x.state.reshape(g.B, g.H, g.K, g.V).swapaxes(2, 3)
    return Operands(q, k, v, log_alpha, run, state)


def operand_specs(x: Inputs, g: Grid) -> Operands:
    """Their blocks."""
    q = layout.tokens_spec(g, g.H, g.K, g.K, layout.own)
    k = layout.tokens_spec(g, g.G, g.K, g.K, layout.shared)
    v = layout.tokens_spec(g, g.G, g.V, g.tile, layout.shared_tile)
    gate = layout.rows_spec(g, layout.shared) if is_scalar(x) else k
    run = None if x.run is None else layout.rows_spec(g, layout.everyone)
    state = None if x.state is None else layout.state_spec(g)
    return Operands(q, k, v, None if x.log_alpha is None else gate, run, state)


def is_scalar(x: Inputs) -> bool:
    """Whether there is a gate, and one number a token of it."""
    return x.log_alpha is not None and x.log_alpha.shape[-1] == 1


def forward(x: Inputs, g: Grid, interpret: Any) -> tuple[Array, Array]:
    """o [B,T,H,V] in the dtype of v, and the last state [B,H,V,K] in float32."""
    o = jax.ShapeDtypeStruct(layout.tokens_shape(g, g.H, g.V, g.tile), x.v.dtype)
    last = jax.ShapeDtypeStruct((g.B, g.H, g.V, g.K), jnp.float32)
    o, last = _call(_outputs, "gla_forward", x, g, interpret)(
        out_shape=(o, last),
        out_specs=(layout.tokens_spec(g, g.H, g.V, g.tile, layout.own_tile), layout.state_spec(g)),
    )
    return layout.from_tokens(o, g, g.H, g.V, g.tile), last


def states(x: Inputs, g: Grid, interpret: Any) -> Array:
    """The state before every chunk, [B,H,N,V,K] in float32."""
    shape = jax.ShapeDtypeStruct((g.B, g.H, g.N, g.V, g.K), jnp.float32)
    return _call(_states, "gla_states", x, g, interpret)(out_shape=shape, out_specs=layout.states_spec(g))


def _call(body: Any, name: str, x: Inputs, g: Grid, interpret: Any) -> Any:
    def call(**outputs: Any) -> Any:
        return pl.pallas_call(
            partial(body, g),
            grid=g.shape,
            in_specs=[operand_specs(x, g)],
            scratch_shapes=[pallas_tpu.VMEM((g.tile, g.K), jnp.float32)],
            compiler_params=layout.parameters(),
            interpret=interpret,
            name=name,
            **outputs,
        )(operands(x, g))

    return call


def _outputs(g: Grid, x: Operands, o_ref: Any, last_ref: Any, S_ref: Any) -> None:
    n = pl.program_id(3)
    _enter(n, x, S_ref)
    q, k, v, S, d = x.q[...], x.k[...], x.v[...], S_ref[...], decay_of(x, g)
    o = dot(times(q, d.start), S, NT, k.dtype) + dot(weights(q, k, d), v, NN, k.dtype)
    o_ref[...] = o.astype(o_ref.dtype)
    S_ref[...] = _after(S, k, v, d)

    @pl.when(n == g.N - 1)
    def _():
        last_ref[...] = S_ref[...]


def _states(g: Grid, x: Operands, states_ref: Any, S_ref: Any) -> None:
    _enter(pl.program_id(3), x, S_ref)
    S = S_ref[...]
    states_ref[...] = S
    S_ref[...] = _after(S, x.k[...], x.v[...], decay_of(x, g))


def _enter(n: Array, x: Operands, S_ref: Any) -> None:
    @pl.when(n == 0)
    def _():
        S_ref[...] = jnp.zeros_like(S_ref) if x.state is None else x.state[...]


def decay_of(x: Operands, g: Grid) -> Decay:
    """Decays of the chunk in `x`."""
    log_alpha, run = (None if ref is None else ref[...] for ref in (x.log_alpha, x.run))
    return decay(log_alpha, run, g.C)


def _after(S: Array, k: Array, v: Array, d: Decay) -> Array:
    return times(S, d.gamma) + dot(v, times(k, d.end), TN, k.dtype)

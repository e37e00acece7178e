"""Gated linear attention on Hopper GPUs: three kernels forward and backward, chunks of 64 tokens.

    forward    intra        per chunk: weights of token pairs, decayed queries and keys, gamma
               pass_states  over chunks: outputs, the state in registers
    backward   both again, states saved in bfloat16;  pass_states in reverse: dv, cotangents of the states
               gradients    per chunk: dq, dk and those of the gates

Operands are bfloat16; sums, decays, states and gates are float32. Every exponent is <= 0. Nothing but the inputs is kept for
the backward pass, unless HopperConfig.keep says so. A reset between packed segments is a log gate of -1e4, whose decay is
exactly zero; that is exact here, since no two sums of gates are ever subtracted (hopper_tiles).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas import platforms
from kernels_pallas.gated_linear_attention.hopper_gradients import gradients
from kernels_pallas.gated_linear_attention.hopper_intra import intra
from kernels_pallas.gated_linear_attention.hopper_states import pass_states, shared_bytes
from kernels_pallas.gated_linear_attention.hopper_tiles import CHUNK, WIDTH
from kernels_pallas.gated_linear_attention.inputs import Inputs

SHARED = 224 * 1024  # of the 227 KiB a block may have
RESET = -1e4  # exp of it is 0; sums of 64 of them are finite


class HopperConfig(NamedTuple):
    """Of the passes over a sequence; more than V, shared memory or registers allow is taken down to what they do.

    stages: chunks in flight.
    warpgroups: that compute in one block, each with 64 value channels and all with the same chunks.
    keep: the backward pass finds states, weights and decayed queries and keys, where it otherwise computes them again; about
      doubles what is kept.
    """

    stages: int = 2
    warpgroups: int = 2
    keep: bool = False


def fitting(config: HopperConfig, K: int, V: int) -> HopperConfig:
    """`config` as it is used for these sizes."""
    wide = V % (2 * WIDTH) == 0 and K <= 128  # two warpgroups and a loading one have 168 registers a thread
    warpgroups = min(config.warpgroups, 2 if wide else 1)
    stages = config.stages
    while stages > 1 and shared_bytes(stages, warpgroups, K) > SHARED:
        stages -= 1
    return config._replace(stages=stages, warpgroups=warpgroups)


def supports_hopper(x: Inputs) -> platforms.Support:
    """Whether `hopper` takes these inputs (arrays or their shapes)."""
    K, V = x.q.shape[-1], x.v.shape[-1]
    if x.log_beta is not None:
        return platforms.no("log_beta: the kernel has no gate on the value channels")
    if x.q.dtype != jnp.bfloat16:
        return platforms.no(f"q, k and v are {x.q.dtype}; the kernel multiplies in bfloat16")
    if K not in (64, 128, 192, 256):
        return platforms.no(f"K = {K} is not 64, 128, 192 or 256")
    if V % WIDTH:
        return platforms.no(f"V = {V} is no multiple of {WIDTH}")
    return platforms.YES


def hopper(x: Inputs, config: HopperConfig = HopperConfig(), *, interpret: Any = None) -> tuple[Array, Array]:
    """Outputs [B,T,G,R,V] in bfloat16 and the last state [B,G,R,K,V] in float32; differentiable.

    Args:
      x: canonical inputs.
      config: block sizes.
      interpret: `compat.gpu_simulation()`, inside `compat.gpu_mesh()`, to simulate the kernels on a CPU.

    Raises:
      ValueError: with the reason of `supports_hopper`.
    """
    support = supports_hopper(x)
    if not support:
        raise ValueError(f"gla on Hopper: {support.reason}")
    B, T, G, R, K = x.q.shape
    V = x.v.shape[-1]

    def padded(a: Array) -> Array:
        return jnp.pad(a, ((0, 0), (0, -T % CHUNK), (0, 0), (0, 0)))

    gate = jnp.zeros((), jnp.float32) if x.log_alpha is None else x.log_alpha
    gate = jnp.broadcast_to(jnp.maximum(gate, RESET), x.k.shape)
    if x.run is not None:
        resets = jnp.diff(x.run, axis=1, prepend=0) != 0
        gate = jnp.where(resets[:, :, None, None], RESET, gate)
    state = jnp.zeros((B, G, R, K, V), jnp.float32) if x.state is None else x.state
    state = state.reshape(B, G * R, K, V).swapaxes(2, 3)
    q = x.q.reshape(B, T, G * R, K)
    o, last = _hopper(padded(q), padded(x.k), padded(x.v), padded(gate), state, config, interpret)
    return o[:, :T].reshape(B, T, G, R, V), last.swapaxes(2, 3).reshape(B, G, R, K, V)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _hopper(q: Array, k: Array, v: Array, gate: Array, state: Array, config: HopperConfig, interpret: Any):
    """q [B,T,H,K], k, gate [B,T,G,K], v [B,T,G,V], state [B,H,V,K], T a multiple of 64 -> (o [B,T,H,V], last [B,H,V,K])."""
    decayed = intra(q, k, gate, interpret)
    o, last = _passes(k, v, config, interpret)(*decayed, v, state)
    return o, last


def _passes(k: Array, v: Array, config: HopperConfig, interpret: Any) -> Callable[..., tuple[Array, ...]]:
    config = fitting(config, k.shape[-1], v.shape[-1])
    return partial(pass_states, stages=config.stages, warpgroups=config.warpgroups, interpret=interpret)


def _decayed_and_states(inputs: tuple[Array, ...], config: HopperConfig, interpret: Any) -> tuple[Any, Any]:
    """(outputs and last state), and what the backward pass needs beside the inputs."""
    q, k, v, gate, state = inputs
    decayed = intra(q, k, gate, interpret)
    o, last, states = _passes(k, v, config, interpret)(*decayed, v, state, save=True)
    return (o, last), (decayed, states)


def _saved(q: Array, k: Array, v: Array, gate: Array, state: Array, config: HopperConfig, interpret: Any):
    inputs = (q, k, v, gate, state)
    if config.keep:
        out, found = _decayed_and_states(inputs, config, interpret)
        return out, (inputs, found)
    return _hopper(*inputs, config, interpret), (inputs, None)


def _gradients(config: HopperConfig, interpret: Any, saved: tuple[Any, Any], cotangents: tuple[Array, Array]):
    (inputs, found), (do, dlast) = saved, cotangents
    q, k, v, gate, _ = inputs
    (q_start, k_end, weights, gamma), states = found or _decayed_and_states(inputs, config, interpret)[1]
    back = partial(_passes(k, v, config, interpret), reverse=True, save=True)
    dv, dstate, dstates = back(k_end, q_start, weights, gamma, do, dlast)
    dq, dk, dgate = gradients(q, k, v, gate, gamma, do, states, dstates, interpret)
    G = k.shape[2]
    return dq, _grouped(dk, G), _grouped(dv, G), _grouped(dgate, G), dstate


def _grouped(a: Array, G: int) -> Array:
    """[B,T,H,D] -> [B,T,G,D], summed over the heads of each group in float32."""
    B, T, H, D = a.shape
    return a if H == G else a.reshape(B, T, G, H // G, D).astype(jnp.float32).sum(axis=3).astype(a.dtype)


_hopper.defvjp(_saved, _gradients)

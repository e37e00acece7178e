"""What every form of GLA computes on: checked inputs in one canonical form.

    q [B,T,G,R,K]   k, log_alpha [B,T,G,K]   v, log_beta [B,T,G,V]   state [B,G,R,K,V]

R = H/G heads share the keys, values and gates of a group (R = 1: multi-head, G = 1: multi-query). A gate is None (no
decay), or has a last axis of 1 (one decay for the head) or of full width. Gates and states are float32, or float64 for
float64 inputs.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


class Inputs(NamedTuple):
    """Canonical arguments; `scale` is already inside q, `log_beta` is None or of full width V."""

    q: Array  # [B,T,G,R,K]
    k: Array  # [B,T,G,K]
    v: Array  # [B,T,G,V]
    log_alpha: Array | None  # [B,T,G,K], [B,T,G,1]
    log_beta: Array | None  # [B,T,G,V]
    state: Array | None  # [B,G,R,K,V]
    run: Array | None  # [B,T] int32, counts the resets so far: state enters where it is 0


def canonical(
    q: Array,
    k: Array,
    v: Array,
    log_alpha: Array | None,
    log_beta: Array | None,
    scale: float | None,
    initial_state: Array | None,
    segment_ids: Array | None,
) -> Inputs:
    """Checks shapes and brings the arguments of `gla` into the form above.

    Raises:
      ValueError: naming the argument whose shape does not fit.
    """
    _check_qkv(q, k, v)
    B, T, H, K = q.shape
    G, V = v.shape[2:]
    dtype = jnp.result_type(q, k, v)
    wide = jnp.promote_types(dtype, jnp.float32)
    q = (q.astype(wide) * (K**-0.5 if scale is None else scale)).astype(dtype).reshape(B, T, G, H // G, K)
    log_alpha = _gate("log_alpha", log_alpha, (B, T, G, K), wide)
    log_beta = _gate("log_beta", log_beta, (B, T, G, V), wide)
    if log_beta is not None and log_beta.shape[-1] != V:  # one decay for the head acts on keys and values alike
        log_alpha, log_beta = log_beta if log_alpha is None else log_alpha + log_beta, None
    if initial_state is not None:
        if initial_state.shape != (B, H, K, V):
            raise ValueError(f"initial_state must be [B,H,K,V] = {(B, H, K, V)}, got {initial_state.shape}")
        initial_state = initial_state.astype(wide).reshape(B, G, H // G, K, V)
    return Inputs(q, k.astype(dtype), v.astype(dtype), log_alpha, log_beta, initial_state, _runs(segment_ids, B, T))


def _check_qkv(q: Array, k: Array, v: Array) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k and v must be [batch, time, heads, channels], got {q.shape}, {k.shape}, {v.shape}")
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in (q, k, v)):
        raise ValueError(f"q, k and v must be floating point, got {q.dtype}, {k.dtype}, {v.dtype}")
    if 0 in q.shape or 0 in v.shape:
        raise ValueError(f"q, k and v must not be empty, got {q.shape}, {k.shape}, {v.shape}")
    if k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3] or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"q [B,T,H,K], k [B,T,G,K] and v [B,T,G,V] do not fit: {q.shape}, {k.shape}, {v.shape}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"the {k.shape[2]} heads of k and v must divide the {q.shape[2]} heads of q")


def _gate(name: str, gate: Array | None, full: tuple[int, ...], dtype: DTypeLike) -> Array | None:
    """Broadcasts a gate over batch, time and groups; its last axis stays 1 or full."""
    if gate is None:
        return None
    shape = (1,) * (4 - gate.ndim) + gate.shape
    if gate.ndim not in (2, 4) or any(s not in (1, f) for s, f in zip(shape, full, strict=True)):
        raise ValueError(f"{name} must broadcast to {full} from [B,T,G,·] or [G,·], got {gate.shape}")
    return jnp.broadcast_to(gate.astype(dtype).reshape(shape), (*full[:3], shape[-1]))


def _runs(segment_ids: Array | None, B: int, T: int) -> Array | None:
    if segment_ids is None:
        return None
    if segment_ids.shape != (B, T):
        raise ValueError(f"segment_ids must be [B,T] = {(B, T)}, got {segment_ids.shape}")
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.cumsum(jnp.pad(changes, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)

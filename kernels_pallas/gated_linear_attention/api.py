"""The public functions: `gla` over sequences and `gla_step` for one token."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kernels_pallas.gated_linear_attention import reference
from kernels_pallas.gated_linear_attention.chunked import chunked
from kernels_pallas.gated_linear_attention.inputs import canonical


def gla(q_BxTxHxK: Array, k_BxTxGxK: Array, v_BxTxGxV: Array, log_alpha_BxTxGxK: Array | None, *,
        log_beta: Array | None = None, scale: float | None = None, initial_state: Array | None = None,
        output_final_state: bool = True, segment_ids: Array | None = None, chunk: int | None = None,
        sub_chunk: int | None = None, impl: str = "auto") -> tuple[Array, Array | None]:
    x = canonical(q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, log_alpha_BxTxGxK, log_beta, scale, initial_state, segment_ids)
    if impl == "recurrent":
        o, state = reference.recurrent(x)
    elif impl == "parallel":
        o, state = reference.parallel(x)
    elif impl in ("auto", "chunked", "associative"):
        o, state = chunked(x, chunk or 32, sub_chunk or 1, "associative" if impl == "associative" else "chunked")
    else:
        raise ValueError(f"impl={impl!r} is unknown")
    B, T, H, K = q_BxTxHxK.shape
    V = v_BxTxGxV.shape[-1]
    o = o.reshape(B, T, H, V).astype(v_BxTxGxV.dtype)
    return o, state.reshape(B, H, K, V) if output_final_state else None


def gla_step(q_BxHxK: Array, k_BxGxK: Array, v_BxGxV: Array, log_alpha_BxGxK: Array | None, state_BxHxKxV: Array, *,
             log_beta: Array | None = None, scale: float | None = None) -> tuple[Array, Array]:
    one = lambda a: None if a is None else (a[:, None] if a.ndim == 3 else a)  # noqa: E731
    o, state = gla(one(q_BxHxK), one(k_BxGxK), one(v_BxGxV), one(log_alpha_BxGxK), log_beta=one(log_beta), scale=scale,
                   initial_state=state_BxHxKxV, impl="recurrent")
    return o[:, 0], state


def check_log_gate(log_gate: Array) -> None:
    worst = float(np.max(np.asarray(log_gate)))
    if not worst <= 0:
        raise ValueError(f"log gates must be <= 0, found {worst}")

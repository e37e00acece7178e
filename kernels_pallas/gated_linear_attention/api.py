"""Gated linear attention as functions on arrays (arXiv 2312.06635).

    S_t = (alpha_t^T beta_t) * S_{t-1} + k_t^T v_t,   o_t = scale q_t S_t  per head, S in R^{K x V}; beta = 1 by default

    impl          steps in time   memory of the gradient   what it is
    recurrent     T               T states                 lax.scan, the definition
    parallel      1               T^2 K                    every pair of tokens, an oracle
    chunked       T/C             inputs, T/C states       matmuls inside chunks, lax.scan between them
    associative   log(T/C)        inputs, T/C states       the same chunks, associative scan between them
    pallas        T/C             inputs                   the kernel of the device: a TPU's or a Hopper GPU's
    interpret     T/C             inputs                   the TPU's kernel in Pallas's interpreter, for tests
    auto                                                   the kernel where there is one that takes the inputs, else chunked

Special cases are gates: None is linear attention, a constant [G,1] is RetNet's decay, [B,T,G,1] is a data-dependent
scalar gate (Mamba-2, simple GLA), [B,T,G,K] is GLA. Scalar gates take the cheaper route: a matmul times D_ij.
"""

from typing import Any

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from kernels_pallas import platforms
from kernels_pallas.gated_linear_attention import reference, shells
from kernels_pallas.gated_linear_attention.chunked import chunked
from kernels_pallas.gated_linear_attention.inputs import canonical

IMPLEMENTATIONS = ("auto", "recurrent", "parallel", "chunked", "associative", "pallas", "interpret")

# (chunk, sub_chunk) by platform. Measured on two CPU cores, forward and backward at B=16, T=256, H=2, K=32, V=64:
# 32/1 takes 1/9 of the time of `recurrent`; 16/1 takes 1.1, 64/1 1.3, 32/2 1.3, 64/2 1.5, 32/4 2.3 and 64/16 5 times as
# long as 32/1. Elsewhere the paper's, not measured.
TILES = {"cpu": (32, 1)}
PAPER_TILES = (64, 16)


def gla(
    q_BxTxHxK: Array,
    k_BxTxGxK: Array,
    v_BxTxGxV: Array,
    log_alpha_BxTxGxK: Array | None,
    *,
    log_beta: Array | None = None,
    scale: float | None = None,
    initial_state: Array | None = None,
    output_final_state: bool = True,
    segment_ids: Array | None = None,
    chunk: int | None = None,
    sub_chunk: int | None = None,
    impl: str = "auto",
    config: Any = None,
) -> tuple[Array, Array | None]:
    """Runs the recurrence along axis 1.

    Args:
      q_BxTxHxK: queries; H is a multiple of G, head h reads the state of group h // (H/G).
      k_BxTxGxK, v_BxTxGxV: keys and values.
      log_alpha_BxTxGxK: log of the forget gate, <= 0 (not checked, see `check_log_gate`): [B,T,G,K], [B,T,G,1],
        a constant [G,K] or [G,1], or None.
      log_beta: a second gate, on the value channels, in the same forms with V for K.
      scale: of q; K^-0.5 if omitted.
      initial_state: [B,H,K,V], belongs to the first segment; zeros if omitted.
      output_final_state: False returns None instead of the state.
      segment_ids: [B,T] integers; where the id changes the state is reset before the token is written.
      chunk, sub_chunk: of "chunked" and "associative", powers of two; inside a chunk, pairs of tokens further apart than sub-chunks
        go through matmuls.
      impl: one of the table above. What "auto" takes, and why no kernel, is said in the log of `kernels_pallas`.
      config: block sizes of a kernel, `tpu.TpuConfig` or `hopper.HopperConfig`; measured or default ones if omitted.

    Returns:
      o [B,T,H,V] in the dtype of v, and the last state [B,H,K,V] in float32 (float64 for float64 inputs).

    Raises:
      ValueError: if shapes do not fit, or an option is unknown; "pallas" or "interpret" where the kernel refuses, with its reason.
    """
    tiles = _tiles(chunk, sub_chunk)
    x = canonical(q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, log_alpha_BxTxGxK, log_beta, scale, initial_state, segment_ids)
    form = platforms.choose("gla", impl, lambda platform: shells.supports(platform, x), IMPLEMENTATIONS)
    if form == "recurrent":
        o, state = reference.recurrent(x)
    elif form == "parallel":
        o, state = reference.parallel(x)
    elif form in ("chunked", "associative"):
        o, state = chunked(x, *tiles, impl=form)
    else:
        o, state = shells.run(form, x, config)
    B, T, H, K = q_BxTxHxK.shape
    V = v_BxTxGxV.shape[-1]
    o = o.reshape(B, T, H, V).astype(v_BxTxGxV.dtype)
    return o, state.reshape(B, H, K, V) if output_final_state else None


def gla_step(
    q_BxHxK: Array,
    k_BxGxK: Array,
    v_BxGxV: Array,
    log_alpha_BxGxK: Array | None,
    state_BxHxKxV: Array,
    *,
    log_beta: Array | None = None,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """One token: `gla` with T = 1. Returns o [B,H,V] in the dtype of v and the new state, float32 (or float64)."""
    x = canonical(
        q_BxHxK[:, None],
        k_BxGxK[:, None],
        v_BxGxV[:, None],
        _one_token(log_alpha_BxGxK),
        _one_token(log_beta),
        scale,
        state_BxHxKxV,
        None,
    )
    log_alpha, log_beta = (None if gate is None else gate[:, 0] for gate in (x.log_alpha, x.log_beta))
    assert x.state is not None
    o, state = reference.step(x.q[:, 0], x.k[:, 0], x.v[:, 0], log_alpha, log_beta, x.state)
    return o.reshape(*q_BxHxK.shape[:2], -1).astype(v_BxGxV.dtype), state.reshape(state_BxHxKxV.shape)


def _one_token(gate: Array | None) -> Array | None:
    """[B,G,D] -> [B,1,G,D]; constants [G,D] stay."""
    return gate[:, None] if gate is not None and gate.ndim == 3 else gate


def check_log_gate(log_gate: ArrayLike, name: str = "log_alpha") -> None:
    """For debugging, outside jit: a positive log gate makes the state grow, and nothing inside jit can say so.

    Raises:
      ValueError: naming the largest value and where it is.
    """
    values = np.asarray(log_gate)
    bad = ~(values <= 0) | np.isinf(values)
    if bad.any():
        where = tuple(int(i) for i in np.unravel_index(np.argmax(bad), values.shape))
        raise ValueError(f"{name} must be finite and <= 0, found {values[where]} at {where} ({bad.sum()} such values)")


def _tiles(chunk: int | None, sub_chunk: int | None) -> tuple[int, int]:
    best_chunk, best_sub_chunk = TILES.get(platforms.platform(), PAPER_TILES)
    if chunk is None:
        chunk = max(best_chunk, sub_chunk or 1)
    if sub_chunk is None:
        sub_chunk = min(best_sub_chunk, chunk)
    for name, size in (("chunk", chunk), ("sub_chunk", sub_chunk)):
        if size < 1 or size & (size - 1):
            raise ValueError(f"{name}={size} must be a power of two")
    if sub_chunk > chunk:
        raise ValueError(f"sub_chunk={sub_chunk} must not be larger than chunk={chunk}")
    return chunk, sub_chunk

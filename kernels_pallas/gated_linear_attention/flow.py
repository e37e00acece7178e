"""How much passes between tokens and the states at a chunk's borders: decays of both gates, cut off at resets."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from kernels_pallas.gated_linear_attention.decays import Decays, decays
from kernels_pallas.gated_linear_attention.layout import Chunks


class Flow(NamedTuple):
    """Factors of one call, None where there is nothing to multiply with."""

    alpha: Decays | None
    beta: Decays | None
    start: Array | None  # [N,B,G,C,K], on q: from the state before the chunk to token t
    end: Array | None  # [N,B,G,C,K], on k: from token t to the state after the chunk
    gamma: Array  # [N,B,G,K,V] or with axes of 1, from the state before to the state after


def flow(x: Chunks, sub_chunk: int) -> Flow:
    """Decays of the gates of `x`."""
    alpha, beta = decays(x.log_alpha, sub_chunk), decays(x.log_beta, sub_chunk)
    start, end = (None, None) if alpha is None else (alpha.start, alpha.end)
    gamma = jnp.ones((x.k.shape[0], 1, 1, 1, 1), jnp.promote_types(x.q.dtype, jnp.float32))
    if alpha is not None:
        gamma = gamma * alpha.whole[..., :, None]
    if beta is not None:
        gamma = gamma * beta.whole[..., None, :]
    if x.masks is not None:
        start, end = _kept(x.masks.enters, start), _kept(x.masks.leaves, end)
        gamma = jnp.where(x.masks.enters[..., -1:, :], gamma, 0)
    return Flow(alpha, beta, start, end, gamma)


def times(a: Array, factor: Array | None) -> Array:
    """a * factor; with the axis of heads in a group inserted where `a` has it."""
    if factor is None:
        return a
    return a * (factor[:, :, :, None] if a.ndim == 6 else factor)


def _kept(mask: Array, factor: Array | None) -> Array:
    return mask.astype(jnp.float32) if factor is None else jnp.where(mask, factor, 0)

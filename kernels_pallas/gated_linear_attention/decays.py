"""Decays inside a chunk, as products of single gates, every one <= 1.

    start_t = exp(g_1 + .. + g_t)                  from the chunk's start up to token t
    end_t   = exp(g_{t+1} + .. + g_C)              from token t to the chunk's end
    a pair of neighbouring blocks that meet at m:  exp(g_{t+1} + .. + g_m) before m,  exp(g_{m+1} + .. + g_t) after

Those of a block twice the size are products of those of its halves: one `exp` a gate, and log2 C roundings. Nothing cancels,
where differences of one cumulative sum lose digits once a strong gate has passed.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from kernels_pallas.gated_linear_attention.layout import blocks, halves, joined, unblock


class Decays(NamedTuple):
    """All decays of one gate, D channels (1 for a scalar gate)."""

    start: Array  # [...,C,D]
    end: Array  # [...,C,D]
    whole: Array  # [...,D]
    pairs: tuple[tuple[Array, Array], ...]  # before and after m, [...,C/(2s),s,D], for s = sub_chunk, ..., C/2
    log_inside: Array  # [...,C,D] inclusive sums of log gates inside sub-chunks


def decays(log_gate: Array | None, sub_chunk: int) -> Decays | None:
    """Decays of `log_gate` [...,C,D]; C and `sub_chunk` are powers of two."""
    if log_gate is None:
        return None
    upto = jnp.exp(log_gate)  # from the border of a block, token included
    after = jnp.ones_like(upto)  # to the border of a block, token excluded
    pairs, size = [], 1
    while size < log_gate.shape[-2]:
        (upto_1, upto_2), (after_1, after_2) = halves(upto, size), halves(after, size)
        if size >= sub_chunk:
            pairs.append((after_1, upto_2))
        after = joined(after_1 * upto_2[..., -1:, :], after_2)
        upto = joined(upto_1, upto_2 * upto_1[..., -1:, :])
        size *= 2
    log_inside = log_gate if sub_chunk == 1 else unblock(jnp.cumsum(blocks(log_gate, sub_chunk), axis=-2))
    return Decays(upto, after, upto[..., -1, :], tuple(pairs), log_inside)

"""One chunk of one head on plain matrices [C,D], as a kernel holds them: decays, token-pair weights, and their gradients.

    channel gate   halving down to single tokens: pairs i > j whose blocks of size s meet at m
                   P_ij = (q_i * upto_i) (k_j * after_j)^T,   upto_i = prod(m..i) alpha,   after_j = prod(j+1..m-1) alpha
    scalar gate    P_ij = q_i k_j^T exp(sum of the log gates j+1..i)
    no gate        P_ij = q_i k_j^T

Decays are products of single gates, or `exp` of sums of the very gates they span: none is above 1, nothing is divided and no
difference is taken. A scalar gate and the runs of packed segments come as rows [1,C], tokens across lanes.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import pallas_tpu

NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # axes that a product sums over


Level = tuple[int, Array, Array]  # size of the blocks; upto, after [C,K]


class Decay(NamedTuple):
    """What passes between the tokens of a chunk and the states at its borders; None where nothing is multiplied."""

    start: Array | None  # [C,K] or [C,1], from the state before the chunk to token t
    end: Array | None  # [C,K] or [C,1], from token t to the state after the chunk
    gamma: Array | None  # [1,K] or [1,1], from the state before to the state after
    levels: tuple[Level, ...]  # of a channel gate
    between: Array | None  # [C,C] of a scalar gate
    seen: Array  # [C,C] j <= i, in one run


def dot(a: Array, b: Array, axes: tuple, dtype: jnp.dtype) -> Array:
    """A product with operands in `dtype` and float32 sums; float32 operands are multiplied as float32."""
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    a, b = a.astype(dtype), b.astype(dtype)
    return lax.dot_general(a, b, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def times(a: Array, factor: Array | None) -> Array:
    """a * factor in float32."""
    return a if factor is None else a.astype(jnp.float32) * factor


def decay(log_alpha: Array | None, run: Array | None, C: int) -> Decay:
    """Decays of a gate [C,K], [1,C] or None; `run` [1,C] counts resets since the token before the chunk."""
    i, j = square(C)
    seen = j <= i if run is None else (j <= i) & (column(run) == run)
    levels: tuple[Level, ...] = ()
    start = end = gamma = between = None
    if log_alpha is not None and log_alpha.shape[0] == C:
        levels, start, end, gamma = _levels(jnp.exp(log_alpha))
    elif log_alpha is not None:
        start = jnp.exp(jnp.sum(jnp.where(j <= i, log_alpha, 0), axis=1, keepdims=True))
        end = jnp.exp(jnp.sum(jnp.where(j > i, log_alpha, 0), axis=1, keepdims=True))
        gamma = jnp.exp(jnp.sum(log_alpha, axis=1, keepdims=True))
        spans = jnp.where(j > i, log_alpha, 0)  # [i,s]: the gates s after token i
        between = jnp.exp(dot((j <= i).astype(jnp.float32), spans, NT, jnp.float32))
    if run is not None:
        last = run[:, C - 1 :]
        start, end = _kept(column(run) == 0, start), _kept(column(run) == last, end)
        gamma = _kept(last == 0, gamma)
    return Decay(start, end, gamma, levels, between, seen)


def weights(q: Array, k: Array, d: Decay) -> Array:
    """P [C,C] of q and k [C,K]."""
    if not d.levels:
        return jnp.where(d.seen, times(dot(q, k, NT, k.dtype), d.between), 0)
    P = _diagonal(jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=1, keepdims=True))
    for size, upto, after in d.levels:
        P += jnp.where(_apart(q.shape[0], size), dot(q * upto, k * after, NT, k.dtype), 0)
    return jnp.where(d.seen, P, 0)


def weights_backward(dP: Array, q: Array, k: Array, d: Decay) -> tuple[Array, Array, Array]:
    """P again, and the cotangents of q and k from that of P."""
    dP = jnp.where(d.seen, dP, 0)
    if not d.levels:
        dP = times(dP, d.between)
        return weights(q, k, d), dot(dP, k, NN, k.dtype), dot(dP, q, TN, k.dtype)
    C = q.shape[0]
    i, j = square(C)
    wide_q, wide_k = q.astype(jnp.float32), k.astype(jnp.float32)
    own = jnp.sum(jnp.where(i == j, dP, 0), axis=1, keepdims=True)
    P, dq, dk = _diagonal(jnp.sum(wide_q * wide_k, axis=1, keepdims=True)), own * wide_k, own * wide_q
    for size, upto, after in d.levels:
        apart, late, early = _apart(C, size), (q * upto).astype(k.dtype), (k * after).astype(k.dtype)
        dsquare = jnp.where(apart, dP, 0)
        P += jnp.where(apart, dot(late, early, NT, k.dtype), 0)
        dq += upto * dot(dsquare, early, NN, k.dtype)
        dk += after * dot(dsquare, late, TN, k.dtype)
    return jnp.where(d.seen, P, 0), dq, dk


def gate_gradient(local: Array, behind: Array, run: Array | None, scalar: bool) -> Array:
    """sum_{i>=t} local_i [C,K] + behind [1,K] inside the run of t; of a scalar gate as a row [1,C], summed over channels."""
    C = local.shape[0]
    i, j = square(C)
    same = True if run is None else column(run) == run
    if scalar:
        local, behind = jnp.sum(local, axis=1, keepdims=True), jnp.sum(behind, axis=1, keepdims=True)
        total = jnp.sum(jnp.where((i >= j) & same, local, 0), axis=0, keepdims=True)
        return total + (behind if run is None else jnp.where(run == run[:, C - 1 :], behind, 0))
    total = dot(((j >= i) & same).astype(jnp.float32), local, NN, jnp.float32)
    return total + (behind if run is None else jnp.where(column(run) == run[:, C - 1 :], behind, 0))


def square(C: int) -> tuple[Array, Array]:
    """Row and column numbers [C,C]."""
    return lax.broadcasted_iota(jnp.int32, (C, C), 0), lax.broadcasted_iota(jnp.int32, (C, C), 1)


def column(row: Array) -> Array:
    """[1,C] -> [C,1], exact."""
    i, j = square(row.shape[1])
    return jnp.sum(jnp.where(i == j, row, 0), axis=1, keepdims=True)


def _diagonal(values: Array) -> Array:
    i, j = square(values.shape[0])
    return jnp.where(i == j, values, 0)


def _apart(C: int, size: int) -> Array:
    """Pairs i > j in neighbouring blocks of `size` that form one of twice the size."""
    i, j = square(C)
    return (j < i) & ((i ^ j) >= size) & ((i ^ j) < 2 * size)


def _levels(alpha: Array) -> tuple[tuple[Level, ...], Array, Array, Array]:
    """Decays inside blocks of 1, 2, 4, ... tokens: up to a token from its block's start, after it to the block's end."""
    C = alpha.shape[0]
    t = lax.broadcasted_iota(jnp.int32, alpha.shape, 0)
    levels, upto, after, whole, size = [], alpha, jnp.ones_like(alpha), alpha, 1
    while size < C:
        levels.append((size, upto, after))
        late = (t & size) != 0
        partner = jnp.where(late, pallas_tpu.roll(whole, size, 0), pallas_tpu.roll(whole, C - size, 0))
        upto, after = jnp.where(late, upto * partner, upto), jnp.where(late, after, after * partner)
        whole, size = whole * partner, 2 * size
    return tuple(levels), upto, after, whole[:1]


def _kept(mask: Array, factor: Array | None) -> Array:
    return mask.astype(jnp.float32) if factor is None else jnp.where(mask, factor, 0)

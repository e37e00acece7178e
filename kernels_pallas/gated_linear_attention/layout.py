"""Sequences cut into chunks, time axes innermost, and the masks that packed segments need.

    [B,T,G,D] -> [N,B,G,C,D],   [B,T,G,R,D] -> [N,B,G,R,C,D],   N = ceil(T/C)

The rest of the last chunk is filled with q = k = v = 0 and log gate 0, which leaves the state alone. A reset is a mask,
never a decay of -inf: sums of log gates run across it unharmed.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from kernels_pallas.gated_linear_attention.inputs import Inputs


class Chunks(NamedTuple):
    """Canonical inputs in chunk layout."""

    q: Array  # [N,B,G,R,C,K]
    k: Array  # [N,B,G,C,K]
    v: Array  # [N,B,G,C,V]
    log_alpha: Array | None  # [N,B,G,C,K] or [N,B,G,C,1]
    log_beta: Array | None  # [N,B,G,C,V]
    masks: "Masks | None"


class Masks(NamedTuple):
    """Which pairs of tokens belong to one run (no reset between them)."""

    same: Array  # [N,B,1,C,C] tokens i and j
    enters: Array  # [N,B,1,C,1] the token and the state before the chunk
    leaves: Array  # [N,B,1,C,1] the token and the state after the chunk
    starts: Array  # [N,B,1,C,1] the token is the first after a reset


def to_chunks(x: Inputs, chunk: int) -> Chunks:
    """Chunk layout of `x`; gates keep their float32 (or float64)."""
    log_alpha, log_beta = (None if a is None else cut(a, chunk) for a in (x.log_alpha, x.log_beta))
    return Chunks(cut(x.q, chunk), cut(x.k, chunk), cut(x.v, chunk), log_alpha, log_beta, _masks(x.run, chunk))


def cut(a: Array, chunk: int) -> Array:
    """[B,T,G(,R),D] -> [N,B,G(,R),C,D], zeros after the end."""
    B, T = a.shape[:2]
    a = jnp.pad(a, ((0, 0), (0, -T % chunk)) + ((0, 0),) * (a.ndim - 2))
    a = a.reshape(B, -1, chunk, *a.shape[2:])
    return jnp.moveaxis(a.swapaxes(0, 1), 2, -2)


def uncut(a: Array, T: int) -> Array:
    """The inverse of `cut`."""
    a = jnp.moveaxis(a, -2, 2).swapaxes(0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])[:, :T]


def _masks(run: Array | None, chunk: int) -> Masks | None:
    if run is None:
        return None
    B, T = run.shape
    run = jnp.pad(run, ((0, 0), (0, -T % chunk)), mode="edge")
    before = jnp.pad(run[:, :-1], ((0, 0), (1, 0)))  # run 0 is the one that the initial state belongs to
    run, before = (a.reshape(B, -1, chunk).swapaxes(0, 1)[:, :, None, :, None] for a in (run, before))
    return Masks(run == run.swapaxes(-1, -2), run == before[..., :1, :], run == run[..., -1:, :], run != before)


def blocks(a: Array, size: int) -> Array:
    """[...,C,D] -> [...,C/size,size,D]."""
    return a.reshape(*a.shape[:-2], -1, size, a.shape[-1])


def unblock(a: Array) -> Array:
    """[...,M,size,D] -> [...,M*size,D]."""
    return a.reshape(*a.shape[:-3], -1, a.shape[-1])


def halves(a: Array, size: int) -> tuple[Array, Array]:
    """Neighbouring blocks in pairs: [...,C,D] -> the earlier and the later one, [...,C/(2 size),size,D] each."""
    a = a.reshape(*a.shape[:-2], -1, 2, size, a.shape[-1])
    return a[..., 0, :, :], a[..., 1, :, :]


def joined(earlier: Array, later: Array) -> Array:
    """The inverse of `halves`."""
    a = jnp.stack([earlier, later], axis=-3)
    return a.reshape(*a.shape[:-4], -1, a.shape[-1])

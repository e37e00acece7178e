"""Recurrences whose time axis is spread over devices.

Each device holds T/N steps. It finds what its steps do to any state that enters them (a decay and an offset), all devices exchange
these N summaries, each folds those before it into the state that enters it, and so every output equals the local one. What travels
is the summary of a state, never a sequence; the work is that of two scans (for GLA of one, and one outer-product sum).

Only the axis of time is taken apart here: batches and channels may be sharded over other axes of the mesh as usual.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kernels_pallas import gla
from paperlab.recurrence.linear import linear_scan


def sharded_linear_scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    mesh: Mesh,
    mesh_axis: str,
    axis: int = -2,
    reverse: bool = False,
    segment_ids: Array | None = None,
    impl: str = "auto",
) -> tuple[Array, Array]:
    """`linear_scan` with the time axis of b sharded over `mesh_axis`, whose size divides its length.

    Args:
      a, b, h0, axis, reverse, segment_ids, impl: as for `linear_scan`; a that is the same at every step stays whole.

    Returns:
      h, sharded like b, and the last state, on every device of `mesh_axis`.

    Raises:
      ValueError: the length is not a multiple of the number of devices, or whatever `linear_scan` refuses.
    """
    time = axis % b.ndim
    a = a.reshape((1,) * (b.ndim - a.ndim) + a.shape)
    _check_length(b.shape[time], mesh, mesh_axis)
    wide = jnp.promote_types(b.dtype, jnp.float32)
    h0 = jnp.zeros(b.shape[:time] + b.shape[time + 1 :], wide) if h0 is None else h0.astype(wide)
    apart = P(*(None,) * time, mesh_axis)
    invariant = a.shape[time] == 1

    def local(a: Array, b: Array, h0: Array, ids: Array | None) -> tuple[Array, Array]:
        if ids is not None:
            begins = _begins(ids, time, reverse, mesh_axis)
            begins = begins.reshape(*begins.shape, *(1,) * (b.ndim - begins.ndim))
            a = jnp.where(begins, 0, a)
        scan = partial(linear_scan, axis=time, reverse=reverse, impl=impl)
        wide_b = b.astype(wide)
        h, last = scan(a, wide_b)
        through, decay = scan(a, jnp.zeros_like(wide_b), jnp.ones_like(h0))
        entering, end = _exchange(decay, last, h0, mesh_axis, reverse, jnp.multiply)
        h = h + through * jnp.expand_dims(entering, time)
        return h.astype(b.dtype), end

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P() if invariant else apart, apart, P(), apart),
        out_specs=(apart, P()),
        axis_names={mesh_axis},
        check_vma=False,
    )
    return spread(a, b, h0, segment_ids)


def sharded_gla(
    q_BxTxHxK: Array,
    k_BxTxGxK: Array,
    v_BxTxGxV: Array,
    log_alpha_BxTxGxK: Array,
    *,
    mesh: Mesh,
    mesh_axis: str,
    initial_state: Array | None = None,
    segment_ids: Array | None = None,
    **options: Any,
) -> tuple[Array, Array]:
    """`kernels_pallas.gla` with the time axis sharded over `mesh_axis`, whose size divides T.

    Args:
      log_alpha_BxTxGxK: [B,T,G,K] or [B,T,G,1].
      initial_state, segment_ids: as for `gla`, both whole in what they say: [B,H,K,V] and [B,T].
      options: `scale`, `chunk`, `sub_chunk`, `impl` of `gla`.

    Returns:
      o [B,T,H,V], sharded like q, and the last state [B,H,K,V] in float32 (float64), on every device of `mesh_axis`.

    Raises:
      ValueError: T is not a multiple of the number of devices, or whatever `gla` refuses.
    """
    B, T, H, K = q_BxTxHxK.shape
    G, V = v_BxTxGxV.shape[2:]
    _check_length(T, mesh, mesh_axis)
    wide = jnp.promote_types(v_BxTxGxV.dtype, jnp.float32)
    state = jnp.zeros((B, H, K, V), wide) if initial_state is None else initial_state.astype(wide)

    def local(q: Array, k: Array, v: Array, log_alpha: Array, state: Array, ids: Array | None) -> tuple[Array, Array]:
        begins = None if ids is None else _begins(ids, 1, False, mesh_axis)
        decay, offset = _summary(k.astype(wide), v.astype(wide), log_alpha.astype(wide), begins)
        decay, offset = (jnp.repeat(x, H // G, axis=1) for x in (decay, offset))
        entering, end = _exchange(decay, offset, state, mesh_axis, False, jnp.multiply)
        if begins is not None:
            entering = jnp.where(begins[:, 0, None, None, None], 0, entering)
        o, _ = gla(q, k, v, log_alpha, initial_state=entering, segment_ids=ids, **options)
        return o, end

    apart = P(None, mesh_axis)
    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(apart, apart, apart, apart, P(), apart),
        out_specs=(apart, P()),
        axis_names={mesh_axis},
        check_vma=False,
    )
    return spread(q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, log_alpha_BxTxGxK, state, segment_ids)


def _summary(k: Array, v: Array, log_alpha: Array, begins: Array | None) -> tuple[Array, Array]:
    """What the steps at hand do to a state S [B,G,K,V]: S -> decay S + offset."""
    later = lax.cumsum(log_alpha, axis=1, reverse=True)
    after = later - log_alpha  # the decay of what step t wrote, by the end
    decay = jnp.exp(later[:, 0])[..., None]
    if begins is None:
        return decay, jnp.einsum("btgk,btgv->bgkv", k * jnp.exp(after), v)
    resets = lax.cumsum(begins.astype(jnp.int32), axis=1, reverse=True)
    survives = (resets - begins) == 0
    decay = jnp.where((resets[:, 0] == 0)[:, None, None, None], decay, 0)
    return decay, jnp.einsum("btgk,btgv->bgkv", jnp.where(survives[..., None, None], k * jnp.exp(after), 0), v)


def _exchange(decay: Array, offset: Array, h0: Array, mesh_axis: str, reverse: bool, act: Any) -> tuple[Array, Array]:
    """(the state that enters this device's steps, the state after all of them)."""
    summaries = lax.all_gather((decay, offset), mesh_axis)

    def step(h: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        decay, offset = now
        return act(decay, h) + offset, h

    end, entering = lax.scan(step, h0, summaries, reverse=reverse)
    return entering[lax.axis_index(mesh_axis)], end


def _begins(ids: Array, time: int, reverse: bool, mesh_axis: str) -> Array:
    """Where the state is reset, the border to the neighbouring device included."""
    count, index = lax.axis_size(mesh_axis), lax.axis_index(mesh_axis)
    edge = (
        lax.slice_in_dim(ids, 0, 1, axis=time)
        if reverse
        else lax.slice_in_dim(ids, ids.shape[time] - 1, None, axis=time)
    )
    hop = [(i, i - 1) for i in range(1, count)] if reverse else [(i, i + 1) for i in range(count - 1)]
    neighbour = lax.ppermute(edge, mesh_axis, hop)
    first = index == (count - 1 if reverse else 0)
    here = (
        lax.slice_in_dim(ids, ids.shape[time] - 1, None, axis=time)
        if reverse
        else lax.slice_in_dim(ids, 0, 1, axis=time)
    )
    neighbour = jnp.where(first, here, neighbour)
    padded = jnp.concatenate([ids, neighbour] if reverse else [neighbour, ids], axis=time)
    length = ids.shape[time]
    left, right = (lax.slice_in_dim(padded, begin, begin + length, axis=time) for begin in (0, 1))
    return left != right


def _check_length(T: int, mesh: Mesh, mesh_axis: str) -> None:
    if mesh_axis not in mesh.shape:
        raise ValueError(f"mesh_axis={mesh_axis!r}: the mesh has {', '.join(mesh.shape)}")
    if T % mesh.shape[mesh_axis]:
        raise ValueError(
            f"{T} steps do not divide over the {mesh.shape[mesh_axis]} devices of {mesh_axis!r}; pad the sequence"
        )

"""The linear recurrence with gates that pLSTM runs along a sequence: its grid with one row, by forms of its own.

    C_{t+1} = T_t C_t + S_t k_t v_t^T,      h_t = scale (q_t M_t C_t + q_t D_t k_t v_t)

C_t [DK, DV, JT] is what arrives at t: the mark M_t reads it before the own input, which reaches the output through the direct gate
D_t only. T acts on JT. With G_ts = M_t T_{t-1} ... T_{s+1} S_s, h_t = scale (sum_{s<t} G_ts (q_t k_s) v_s + D_t (q_t k_t) v_t).

    impl           dependent steps    memory beside inputs          what it is
    sequential     T                  1 state                       lax.scan, the definition
    associative    2 log2 T           T states [JT, DK, DV]         lax.associative_scan of the maps (T, S k v)
    chunked        T/C + log2 C       T C gates, T/C states         blocks of C merged by levels, attention inside
    hierarchical   log2 T             T^2 gates                     the same with one block: attention with G
    pallas         T                  1 state                       a kernel of a TPU or a Hopper GPU, where all J are 1

A document starts where M and T are zero. Gradients of the merged forms recompute what is in a block.

Gated linear attention without normaliser, C_t = f C_{t-1} + i k v, h_t = o q C_t, is T = f, S = i, M = o f, D = o i.

Source: pLSTM (arXiv 2506.11997), appendices A.3, A.5 and A.6.
"""

import jax
import jax.numpy as jnp
from jax import Array

from paperlab.recurrence import affine, kernels
from paperlab.recurrence.grid_blocks import Edges
from paperlab.recurrence.grid_blocks import Gates as GridGates
from paperlab.recurrence.line_blocks import Gates, associative, blocks, levels, one_step, padded, read_own, sequential

IMPLEMENTATIONS = ("auto", "sequential", "associative", "chunked", "hierarchical", "pallas")
CHUNK, CHUNK_WITH_STATES = 32, 8  # measured on two CPU cores, with gradients, for 256 steps of 32 sequences


def line_memory(
    q: Array,
    k: Array,
    v: Array,
    gates: Gates,
    direct: Array | None = None,
    *,
    entering: Array | None = None,
    segment_ids: Array | None = None,
    scale: float | None = None,
    impl: str = "auto",
    chunk: int = 0,
) -> tuple[Array, Array]:
    """What every step reads from the memory of the steps before it, and of itself.

    Args:
      q, k: [..., T, DK, JQ] and [..., T, DK, JK];  v: [..., T, DV, JV], real floating point.
      gates: as in `Gates`.
      direct: [..., T, JO, JQ, JK, JV], how a step reads itself; nothing, if omitted.
      entering: the state [..., DK, DV, JT] before the first step; zeros if omitted.
      segment_ids: integers [..., T], leading axes broadcast; where the id changes the state is zero for the step and those after
        it. `entering` belongs to the segment that comes first.
      scale: of the output; DK^-0.5 if omitted.
      impl: "auto" (chunked), "sequential", "associative", "chunked", "hierarchical" or "pallas".
      chunk: steps of a block, for "chunked", a power of two; 0: 32 where JO JV = 1, else 8.

    Returns:
      out [..., T, DV, JO] in the dtype of v, and the state after the last step [..., DK, DV, JT] in float32 (float64).

    Raises:
      ValueError: shapes that do not fit, an empty sequence, an unknown `impl`, or a kernel that is not there or refuses.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    _check(q, k, v, gates, direct, entering, segment_ids, chunk)
    scale = q.shape[-2] ** -0.5 if scale is None else scale
    if segment_ids is not None:
        gates = _cut(gates, affine.starts(segment_ids, axis=-1, reverse=False))
    if impl == "pallas":
        return _kernel(q, k, v, gates, direct, entering, scale)
    wide = jnp.promote_types(v.dtype, jnp.float32)
    Q, K, V, gates, direct, entering = jax.tree.map(lambda x: x.astype(wide), (q, k, v, gates, direct, entering))
    lead = jnp.broadcast_shapes(*(x.shape[:-3] for x in (Q, K, V, gates.transition)))
    JT, DK, DV = gates.transition.shape[-1], q.shape[-2], v.shape[-2]
    state = (
        jnp.zeros((*lead, DK, DV, JT), wide) if entering is None else jnp.broadcast_to(entering, (*lead, DK, DV, JT))
    )
    state = jnp.moveaxis(state, -1, -3)
    if impl == "sequential":
        out, state = sequential(Q, K, V, gates, state)
    elif impl == "associative":
        out, state = associative(Q, K, V, gates, state)
    else:
        size = 1 << (q.shape[-3] - 1).bit_length()
        chunk = chunk or (CHUNK if gates.mark.shape[-3] * gates.source.shape[-1] == 1 else CHUNK_WITH_STATES)
        out, state = blocks(Q, K, V, gates, state, size if impl == "hierarchical" else min(chunk, size))
    if direct is not None:
        out = out + read_own(Q, K, V, direct)
    return (out * scale).astype(v.dtype), jnp.moveaxis(state, -3, -1)


def line_step(
    q: Array, k: Array, v: Array, gates: Gates, direct: Array | None, state: Array, *, scale: float | None = None
) -> tuple[Array, Array]:
    """One step: arrays as for `line_memory` without the axis of time -> out [..., DV, JO], state [..., DK, DV, JT]."""
    wide = jnp.promote_types(v.dtype, jnp.float32)
    Q, K, V, gates, direct = jax.tree.map(lambda x: x.astype(wide), (q, k, v, gates, direct))
    out, state = one_step(Q, K, V, gates, jnp.moveaxis(state.astype(wide), -1, -3))
    if direct is not None:
        out = out + read_own(Q, K, V, direct)
    scale = q.shape[-2] ** -0.5 if scale is None else scale
    return (out * scale).astype(v.dtype), jnp.moveaxis(state, -3, -1)


def line_gating(gates: Gates, direct: Array | None = None) -> Array:
    """G, the gates multiplied along the way: [..., T, T, JO, JQ, JK, JV], reading step first; `direct` on its diagonal."""
    T = gates.transition.shape[-3]
    (JO, JQ), (JK, JV) = gates.mark.shape[-3:-1], gates.source.shape[-2:]
    top = levels(padded(gates, -T % (1 << (T - 1).bit_length())))[-1]
    size = top.read.shape[-2] // (JO * JQ)
    lead = jnp.broadcast_shapes(top.read.shape[:-3], top.write.shape[:-3])
    inside = jnp.zeros((*lead, 1, JO * JQ, JK * JV), top.read.dtype) if top.inside is None else top.inside
    G = inside[..., 0, :, :].reshape(*lead, size, JO, JQ, size, JK, JV)[..., :T, :, :, :T, :, :]
    G = jnp.moveaxis(G, -3, -5)
    return (
        G
        if direct is None
        else G + jnp.eye(T, dtype=G.dtype)[..., None, None, None, None] * direct[..., None, :, :, :, :]
    )


def _cut(gates: Gates, starts: Array) -> Gates:
    """Nothing comes over the border before a start: neither into the step nor past it."""

    def kept(x: Array, own: int) -> Array:
        return jnp.where(starts.reshape(*starts.shape, *(1,) * own), 0, x)

    return Gates(gates.source, kept(gates.transition, 2), kept(gates.mark, 3))


def _kernel(
    q: Array, k: Array, v: Array, gates: Gates, direct: Array | None, entering: Array | None, scale: float
) -> tuple[Array, Array]:
    """A grid with one row."""

    def row(x: Array, own: int) -> Array:
        return jnp.expand_dims(x, x.ndim - own)

    grid = GridGates(row(gates.source, 3), None, row(gates.transition, 2), None, None, None, row(gates.mark, 3), None)
    edges = None
    if entering is not None:
        top = jnp.zeros((*entering.shape[:-3], q.shape[-3], *entering.shape[-3:]), entering.dtype)
        edges = Edges(row(entering, 3), top)
    straight = None if direct is None else row(direct, 4)
    out, leaving = kernels.grid(row(q, 2), row(k, 2), row(v, 2), grid, straight, edges, scale)
    return out[..., 0, :, :], leaving.vertical[..., 0, :, :, :]


def _check(
    q: Array,
    k: Array,
    v: Array,
    gates: Gates,
    direct: Array | None,
    entering: Array | None,
    segment_ids: Array | None,
    chunk: int,
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be real floating point [..., T, D, J], got {x.dtype}{list(x.shape)}")
        if 0 in x.shape:
            raise ValueError(f"{name} must not be empty, got {x.shape}")
    T, DK, DV = q.shape[-3], q.shape[-2], v.shape[-2]
    (JO, JQ, JT), (JK, JV) = gates.mark.shape[-3:], gates.source.shape[-2:]
    wanted: dict[str, tuple[int, ...]] = {"q": (T, DK, JQ), "k": (T, DK, JK), "v": (T, DV, JV)}
    given: dict[str, Array | None] = {"q": q, "k": k, "v": v}
    wanted |= {"gates.source": (T, JT, JK, JV), "gates.transition": (T, JT, JT), "gates.mark": (T, JO, JQ, JT)}
    given |= {f"gates.{name}": gate for name, gate in zip(Gates._fields, gates, strict=True)}
    wanted |= {"direct": (T, JO, JQ, JK, JV), "entering": (DK, DV, JT), "segment_ids": (T,)}
    given |= {"direct": direct, "entering": entering, "segment_ids": segment_ids}
    for name, shape in wanted.items():
        array = given[name]
        if array is not None and array.shape[-len(shape) :] != shape:
            raise ValueError(f"{name} must end with {shape} to fit the others, got {array.shape}")
    if chunk < 0 or chunk & (chunk - 1):
        raise ValueError(f"chunk={chunk}: must be a power of two (or 0: the measured one)")

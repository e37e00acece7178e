"""Four directions over one grid: pLSTM's memory read from every corner.

    direction   0: the grid as it is   1: x reversed   2: y reversed   3: both
    fused       out = q (sum_o G_o + G_direct) k v             one attention with the sum of the four G, or four recurrences summed
    apart       out_o = q (G_o + G_direct) k v                 one result a direction

Every direction has its own source, transition and mark gates, stored in the coordinates of the grid as it is; q, k, v and the
direct gate are shared. Source: pLSTM (arXiv 2506.11997), section 4.3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from paperlab.layers.sharding import by_rows
from paperlab.recurrence.grid import IMPLEMENTATIONS, Edges, Gates, attend, grid_memory, merged_whole
from paperlab.recurrence.grid_blocks import in_blocks, in_rows, merged, mirrored, single, sizes

TURNS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))  # the axes that each direction reverses
X_AXIS = (-5, -5, -4, -4, -4, -4, -5, -5)  # where a gate has its x axis
SUMMED = "summed"
CHOICES = (*IMPLEMENTATIONS, SUMMED)
PADDINGS = ("needed", "power_of_two")


def turned(x: Array, axis: int, directions: tuple[int, ...], *, of: int) -> Array:
    """Every direction's share of x [..., directions, ..., X, Y, ...] with the axes reversed that it reverses; its own inverse.

    Args:
      axis: of X, from the end; Y is the next one.
      directions: numbers from 0 to 3.
      of: where the axis of the directions is, from the end.
    """
    parts = []
    for i, direction in enumerate(directions):
        part = jax.lax.index_in_dim(x, i, of, keepdims=False)
        parts.append(jnp.flip(part, [axis + turn for turn in TURNS[direction]]) if TURNS[direction] else part)
    return jnp.stack(parts, of)


def spread(x: Array, axis: int, directions: tuple[int, ...]) -> Array:
    """x [..., X, Y, ...] as every direction sees it: a new axis for the directions right before X."""
    parts = [jnp.flip(x, [axis + turn for turn in TURNS[d]]) if TURNS[d] else x for d in directions]
    return jnp.stack(parts, axis - 1)


def each_gate(change: Callable[[Array, int], Array], gates: Gates) -> Gates:
    """change(gate, its x axis) of every gate that there is."""
    found = [None if g is None else change(g, x) for g, x in zip(gates, X_AXIS, strict=True)]
    return Gates(*found)  # type: ignore[arg-type]


def gates_turned(gates: Gates, directions: tuple[int, ...]) -> Gates:
    """Gates [..., directions, X, Y, ...] in the coordinates of the grid -> in those of each direction."""
    return each_gate(lambda g, x: turned(g, x, directions, of=x - 1), gates)


def attend_to_all(q: Array, k: Array, v: Array, gates: Gates, directions: tuple[int, ...] = (0, 1, 2, 3)) -> Array:
    """One attention with the sum of the directions' G: [..., X, Y, DV, JO] from gates [..., directions, X, Y, ...].

    Nodes stay in the order in which blocks were merged, where mirroring the grid is a reversal of some factors of their number.
    """
    X, Y = q.shape[-4:-2]
    size = (X, Y)
    block = merged(single(gates_turned(gates, directions)), size)
    if block.G is None:  # a single node
        return jnp.zeros((*v.shape[:-1], gates.mark_l.shape[-3]), v.dtype)
    JO, JQ, JK, JV = sizes(gates)
    G = block.G.reshape(*block.G.shape[:-4], X * Y, JO, JQ, X * Y, JK, JV)
    parts = [G[..., i, :, :, :, :, :, :] for i in range(len(directions))]
    for i, direction in enumerate(directions):
        for axis in (-6, -3):
            parts[i] = mirrored(parts[i], size, TURNS[direction], axis)
    total = jnp.moveaxis(sum(parts[1:], parts[0]), -3, -5)
    Q, K, V = (in_blocks(x, size)[..., 0, 0, :, None, :, :] for x in (q, k, v))
    out = attend(Q, K, V, total[..., :, None, :, None, :, :, :, :])
    return in_rows(out[..., None, None, :, 0, :, :], size)


def read_grid(
    q: Array,
    k: Array,
    v: Array,
    gates: Gates,
    direct: Array,
    *,
    directions: tuple[int, ...] = (0, 1, 2, 3),
    fused: bool = True,
    impl: str = "auto",
    chunk: int = 8,
    padding: str = "needed",
) -> Array:
    """What every node reads, over all directions.

    Args:
      q, k, v: [B, H, X, Y, D, J] as for `grid_memory`.
      gates: [B or 1, H, directions, X, Y, ...] in the coordinates of the grid; None is zero.
      direct: [B or 1, H, X, Y, JO, JQ, JK, JV], counted once.
      directions: which of the four there are.
      fused: sum the directions; else give each.
      impl: of `grid_memory`, direction by direction, or "summed" (only where fused): the sum of G and one attention with it.
        "auto": where `merged_whole`, the whole grid, "summed" (a quarter of the products with q, k and v) or, where not fused,
        "hierarchical"; "wavefront" from there on.
      chunk: side of a block for "wavefront".
      padding: with zeros, "needed" where `chunk` does not divide the sides, or to the next "power_of_two".

    Returns:
      [B, H, X, Y, DV, JO], or [B, H, directions, X, Y, DV, JO] where not fused, in the dtype of v.
    """
    X, Y = q.shape[2:4]
    if impl == "auto":
        whole = SUMMED if fused else "hierarchical"
        impl = whole if merged_whole(X, Y, max(q.shape[-2], v.shape[-2])) else "wavefront"
    if impl == SUMMED and not fused:
        raise ValueError(f"impl={SUMMED!r}: directions that stay apart have no sum; choose another")
    side = chunk if impl == "wavefront" else 1
    size = (_padded(X, side, padding), _padded(Y, side, padding))
    q, k, v = (_pad(x, -4, size) for x in (q, k, v))
    gates = each_gate(lambda g, x: _pad(g, x, size), gates)
    direct = _pad(direct, -6, size)
    wide = jnp.promote_types(v.dtype, jnp.float32)
    if impl == SUMMED:
        Q, K, V, gates = jax.tree.map(lambda x: x.astype(wide), (q, k, v, gates))
        out = attend_to_all(Q, K, V, gates, directions)
        out = out + reads_itself(Q, K, V, direct.astype(wide))
        return out.astype(v.dtype)[:, :, :X, :Y]
    values = v if impl == "pallas" else v.astype(wide)  # directions are summed in float32, a kernel's after rounding
    out, _ = walk(q, k, values, gates, None, directions=directions, impl=impl, chunk=chunk)
    out, own = out.astype(wide), reads_itself(q, k, v.astype(wide), direct)
    out = out.sum(2) + own if fused else out + own[:, :, None]
    return out.astype(v.dtype)[..., :X, :Y, :, :]


def walk(
    q: Array,
    k: Array,
    v: Array,
    gates: Gates,
    entering: Edges | None,
    *,
    directions: tuple[int, ...],
    impl: str,
    chunk: int,
) -> tuple[Array, Edges]:
    """`grid_memory` in every direction: out [B, H, directions, X, Y, DV, JO] in the coordinates of the grid, no direct gate.

    Args:
      entering: [B, H, directions, Y or X, DK, DV, JT], each direction's in its own coordinates (what enters where it starts).

    Returns:
      out, and the states that leave, likewise.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: choose one of {', '.join(CHOICES)}")
    q, k, v = (spread(x, -4, directions) for x in (q, k, v))
    gates = gates_turned(gates, directions)

    def run(q: Array, k: Array, v: Array, gates: Gates, entering: Edges | None) -> tuple[Array, Edges]:
        return grid_memory(q, k, v, gates, entering=entering, impl=impl, chunk=chunk)

    if impl == "pallas":
        rows = q.shape[0]
        gates = jax.tree.map(lambda g: jnp.broadcast_to(g, (rows, *g.shape[1:])), gates)
        out, leaving = by_rows(run, q, k, v, gates, entering)
    else:
        out, leaving = run(q, k, v, gates, entering)
    return turned(out, -4, directions, of=-5), leaving


def reads_itself(q: Array, k: Array, v: Array, direct: Array) -> Array:
    """DK^-1/2 q direct k v of every node with itself: [..., X, Y, DV, JO]."""
    scores = jnp.einsum("...dq,...dk->...qk", q, k) * q.shape[-2] ** -0.5
    weights = (direct * scores[..., None, :, :, None]).sum(
        (-3, -2)
    )  # sums: XLA refuses products of eight axes on a CPU
    return jnp.einsum("...ol,...vl->...vo", weights, v)


def _padded(n: int, chunk: int, padding: str) -> int:
    if padding == "power_of_two":
        n = 1 << (n - 1).bit_length()
    return n if n <= chunk else -(-n // chunk) * chunk


def _pad(x: Array, axis: int, size: tuple[int, int]) -> Array:
    """Zeros behind the grid, whose x axis is `axis`, up to this size."""
    widths = [(0, 0)] * x.ndim
    for i, n in enumerate(size):
        widths[x.ndim + axis + i] = (0, n - x.shape[axis + i])
    return jnp.pad(x, widths) if any(after for _, after in widths) else x

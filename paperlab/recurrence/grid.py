"""Two-dimensional linear recurrences with the state on the edges of a grid, and the memory that pLSTM keeps in them.

Node (x, y) has an edge to the right, to (x + 1, y), and one down, to (x, y + 1). With cl and cu the states on the edges that come
in from the left and from above,

    right = rl cl + ru cu + source_r k v^T           out = scale (q (mark_l cl + mark_u cu) + q direct k v)
    down  = dl cl + du cu + source_d k v^T

rl, ru, dl, du: left to right, up to right, left to down, up to down. Gates depend on the input alone, so all is linear in k v^T;
with G the gates multiplied along all paths from node m to node n, out_n = scale sum_m G_nm (q_n k_m) v_m.

    impl           dependent steps      what it is
    nodes          X Y                  node after node, the definition
    wavefront      X/c + Y/c - 1        blocks of c x c nodes merged first, then one anti-diagonal of blocks after another
    hierarchical   log2 X + log2 Y      blocks merged until one is left: G of the whole grid, [X Y, X Y], and attention with it
    pallas         X Y, or X Y / c^2    a kernel of a TPU or a Hopper GPU, where all J are 1 (kernels_pallas.plstm)

A sequence is a grid of one row (Y = 1): right edges only, `ru`, `dl`, `du`, `source_d` and `mark_u` None. Missing gates are zeros
that cost nothing: D-mode has no `dl` (chirality L) or no `ru` (chirality R).

Source: pLSTM (arXiv 2506.11997), section 4.3 and appendices A.3, A.4. Merging in one direction at a time gives its 2 x 2 merge.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from paperlab.recurrence import kernels
from paperlab.recurrence.grid_blocks import Edges, Gates, divisor, in_rows, merged, single, sizes
from paperlab.recurrence.grid_walk import by_diagonals, node_by_node

IMPLEMENTATIONS = ("auto", "nodes", "wavefront", "hierarchical", "pallas")


def grid_memory(
    q: Array,
    k: Array,
    v: Array,
    gates: Gates,
    direct: Array | None = None,
    *,
    entering: Edges | None = None,
    scale: float | None = None,
    impl: str = "auto",
    chunk: int = 8,
) -> tuple[Array, Edges]:
    """What every node reads from the memory of all nodes to its upper left.

    Args:
      q, k: [..., X, Y, DK, JQ] and [..., X, Y, DK, JK];  v: [..., X, Y, DV, JV], real floating point.
      gates: as in `Gates`.
      direct: [..., X, Y, JO, JQ, JK, JV], how a node reads itself; nothing, if omitted.
      entering: states on the left and upper border; zeros if omitted.
      scale: of the output; DK^-0.5 if omitted.
      impl: "auto" (hierarchical where `merged_whole`, else wavefront), "nodes", "wavefront", "hierarchical" or "pallas".
      chunk: side of a block, for "wavefront"; a side of the grid that it does not divide is cut by its largest divisor below.

    Returns:
      out [..., X, Y, DV, JO] in the dtype of v, and the states that leave through the right and lower border, in float32 (float64).
      Work for N x N nodes: N^2 states (nodes), N^4 (hierarchical), N^2 c^2 (wavefront). Gradients of the last two recompute what is
      inside a block.

    Raises:
      ValueError: shapes that do not fit, an empty grid, an unknown `impl`, or a kernel that is not there or refuses.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    _check(q, k, v, gates, direct, entering, chunk)
    if impl == "pallas":
        return kernels.grid(q, k, v, gates, direct, entering, scale)
    wide = jnp.promote_types(v.dtype, jnp.float32)
    Q, K, V, gates, direct, entering = jax.tree.map(lambda x: x.astype(wide), (q, k, v, gates, direct, entering))
    scale = q.shape[-2] ** -0.5 if scale is None else scale
    state = None if entering is None else Edges(*map(_border, entering))
    X, Y = q.shape[-4:-2]
    if impl == "auto":
        impl = "hierarchical" if merged_whole(X, Y, max(q.shape[-2], v.shape[-2])) else "wavefront"
    if impl == "nodes":
        out, state = node_by_node(Q, K, V, gates, state)
    else:
        cut = (X, Y) if impl == "hierarchical" else (divisor(X, chunk), divisor(Y, chunk))
        out, state = by_diagonals(Q, K, V, gates, state, cut)
    if direct is not None:
        out = out + _read_directly(direct, Q, K, V)
    JT = gates.rl.shape[-1]
    leaving = (jnp.moveaxis(x.reshape(*x.shape[:-3], -1, JT, *x.shape[-2:]), -3, -1) for x in state)
    return (out * scale).astype(v.dtype), Edges(*leaving)


def merged_whole(X: int, Y: int, D: int) -> bool:
    """Whether a grid of X x Y nodes with keys or values of D channels is faster merged whole than in blocks.

    Merged whole, a node costs 2 X Y D products, in blocks of c x c about 4 c D^2. Measured with gradients on a CPU, the whole is
    the faster up to 32 D nodes; beyond 1024 it would be memory, [X Y, X Y] a head, that decides. Elsewhere, unmeasured, 256 nodes.
    """
    most = min(max(32 * D, 256), 1024) if jax.default_backend() == "cpu" else 256
    return most >= X * Y


def _border(x: Array) -> Array:
    """[..., n, DK, DV, JT] -> [..., n JT, DK, DV]."""
    x = jnp.moveaxis(x, -1, -3)
    return x.reshape(*x.shape[:-4], -1, *x.shape[-2:])


def _read_directly(direct: Array, q: Array, k: Array, v: Array) -> Array:
    """What a node reads of itself, [..., DV, JO]. The sums over J are written out, as contractions they would be slow."""
    JQ, JK, JV = direct.shape[-3:]
    total = None
    for i, j in np.ndindex(JQ, JK):
        weight = direct[..., i, j, :] * (q[..., i] * k[..., j]).sum(-1)[..., None, None]  # [..., JO, JV]
        for l in range(JV):
            part = v[..., :, None, l] * weight[..., None, :, l]
            total = part if total is None else total + part
    assert total is not None
    return total


def gating(gates: Gates, direct: Array | None = None) -> Array:
    """G, the gates multiplied along all paths: [..., X, Y, X, Y, JO, JQ, JK, JV], reading node first; `direct` on its diagonal."""
    X, Y = gates.rl.shape[-4:-2]
    block = merged(single(gates), (X, Y))
    JO, JQ, JK, JV = sizes(gates)
    G = _matrix(block.G, block.rows, block.cols, gates.rl)
    G = in_rows(G.reshape(*G.shape[:-2], X * Y, JO, JQ, X * Y, JK, JV), (X, Y), 5)
    G = in_rows(jnp.moveaxis(G, -3, -5)[..., None, None, :, :, :, :, :], (X, Y), 4)
    return G if direct is None else G + _diagonal(direct)


def four_directions(gates: Sequence[Gates], direct: Array | None = None) -> Array:
    """The sum of `gating` over the grid as it is, with x reversed, y reversed and both: paths from every node to every other.

    Args:
      gates: of the four directions, in the coordinates of the grid as it is.
      direct: counted once.
    """
    turns: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))
    total = None if direct is None else _diagonal(direct)
    for own, axes in zip(gates, turns, strict=True):
        flipped = [None if g is None else _flip(g, axes, -t) for g, t in zip(own, GRID_AXIS, strict=True)]
        G = gating(Gates(*flipped))  # type: ignore[arg-type]
        G = _flip(_flip(G, axes, -8), axes, -6)
        total = G if total is None else total + G
    assert total is not None
    return total


GRID_AXIS = (5, 5, 4, 4, 4, 4, 5, 5)  # how far from the end the x axis of each gate is


def _flip(x: Array, axes: tuple[int, ...], first: int) -> Array:
    return jnp.flip(x, [first + axis for axis in axes]) if axes else x


def attend(q: Array, k: Array, v: Array, G: Array, *, scale: float | None = None) -> Array:
    """scale sum_m G_nm (q_n k_m) v_m: [..., X, Y, DV, JO] from q, k, v as for `grid_memory` and G as of `gating`."""
    shape = q.shape[:-4]
    X, Y = q.shape[-4:-2]
    Q, K, V = (x.reshape(*shape, X * Y, *x.shape[-2:]) for x in (q, k, v))
    G = G.reshape(*G.shape[:-8], X * Y, X * Y, *G.shape[-4:])
    JO, JQ, JK, JV = G.shape[-4:]
    scores = {(i, j): Q[..., i] @ K[..., j].swapaxes(-1, -2) for i in range(JQ) for j in range(JK)}
    products = [G[..., i, j, :] * s[..., None, None] for (i, j), s in scores.items()]
    weights = jnp.swapaxes(sum(products[1:], products[0]), -3, -2)
    values = V.swapaxes(-1, -2).reshape(*V.shape[:-3], X * Y * JV, -1)
    out = weights.reshape(*weights.shape[:-4], X * Y * JO, X * Y * JV) @ values
    out = out.reshape(*out.shape[:-2], X * Y, JO, -1).swapaxes(-1, -2)
    return out.reshape(*shape, X, Y, *out.shape[-2:]) * (q.shape[-2] ** -0.5 if scale is None else scale)


def _diagonal(direct: Array) -> Array:
    X, Y, *J = direct.shape[-6:]
    own = direct.reshape(*direct.shape[:-6], X * Y, *J)
    G = jnp.eye(X * Y, dtype=direct.dtype)[..., None, None, None, None] * own[..., None, :, :, :, :]
    return G.reshape(*direct.shape[:-6], X, Y, X, Y, *J)


def _matrix(m: Array | None, rows: int, cols: int, like: Array) -> Array:
    return jnp.zeros((*like.shape[:-4], 1, 1, rows, cols), like.dtype) if m is None else m


def _check(
    q: Array, k: Array, v: Array, gates: Gates, direct: Array | None, entering: Edges | None, chunk: int
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim < 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be real floating point [..., X, Y, D, J], got {x.dtype}{list(x.shape)}")
        if 0 in x.shape:
            raise ValueError(f"{name} must not be empty, got {x.shape}")
    X, Y = q.shape[-4:-2]
    JO, JQ, JK, JV = sizes(gates)
    JT = gates.rl.shape[-1]
    wanted = {"q": (X, Y, q.shape[-2], JQ), "k": (X, Y, q.shape[-2], JK), "v": (X, Y, v.shape[-2], JV)}
    for (name, shape), x in zip(wanted.items(), (q, k, v), strict=True):
        if x.shape[-4:] != shape:
            raise ValueError(f"{name} must end with {shape} to fit the gates, got {x.shape}")
    source: tuple = (X, Y, JT, JK, JV)
    T, mark = (X, Y, JT, JT), (X, Y, JO, JQ, JT)
    for name, shape, gate in zip(Gates._fields, (source, source, T, T, T, T, mark, mark), gates, strict=True):
        if gate is not None and gate.shape[-len(shape) :] != shape:
            raise ValueError(f"gates.{name} must end with {shape}, got {gate.shape}")
    if direct is not None and direct.shape[-6:] != (X, Y, JO, JQ, JK, JV):
        raise ValueError(f"direct must end with {(X, Y, JO, JQ, JK, JV)}, got {direct.shape}")
    if entering is not None:
        for name, length, x in zip(Edges._fields, (Y, X), entering, strict=True):
            if x.shape[-4:] != (length, q.shape[-2], v.shape[-2], JT):
                raise ValueError(
                    f"entering.{name} must end with {(length, q.shape[-2], v.shape[-2], JT)}, got {x.shape}"
                )
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")

"""What every form computes at a node, and the gating matrix of a tile; no form has its own copy of these equations."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Gates(NamedTuple):
    """Gates of nodes, names as in `plstm_grid`."""

    source_r: Array
    source_d: Array
    rl: Array
    ru: Array
    dl: Array
    du: Array
    mark_l: Array
    mark_u: Array
    direct: Array


class Inputs(NamedTuple):
    """Arguments of `plstm_grid` in one form: the scale of the output inside the gates, nothing missing."""

    q: Array  # [B,H,X,Y,DK]
    k: Array
    v: Array  # [B,H,X,Y,DV], one dtype with q and k
    gates: Gates  # [B,H,X,Y] each, float32 or float64, as the states
    left: Array  # [B,H,Y,DK,DV]
    top: Array  # [B,H,X,DK,DV]


class Results(NamedTuple):
    """What leaves the grid, in the dtype of the states."""

    out: Array  # [B,H,X,Y,DV]
    right: Array  # [B,H,Y,DK,DV]
    bottom: Array  # [B,H,X,DK,DV]


def node(g: Any, left: Any, up: Any, own: Any) -> tuple[Any, Any, Any]:
    """(what the node reads, state on its right edge, state on its lower edge).

    left, up: states on the incoming edges; own: what the node writes. States may be anything linear: k v^T themselves, or the
    coefficients of all nodes and incoming borders of a tile in them.
    """
    seen = g.mark_l * left + g.mark_u * up + g.direct * own
    right, down = passed(g, left, up)
    return seen, right + g.source_r * own, down + g.source_d * own


def passed(g: Any, left: Any, up: Any) -> tuple[Any, Any]:
    """(right, down) of a node that writes nothing."""
    return g.rl * left + g.ru * up, g.dl * left + g.du * up


def adjoint(g: Any, left: Any, up: Any, own: Any, seen: Any, right: Any, down: Any) -> tuple[Gates, Any, Any, Any]:
    """Cotangents of (gates, left, up, own) of `node` for cotangents (seen, right, down); those of gates before they are summed."""
    gates = Gates(
        source_r=own * right,
        source_d=own * down,
        rl=left * right,
        ru=up * right,
        dl=left * down,
        du=up * down,
        mark_l=left * seen,
        mark_u=up * seen,
        direct=own * seen,
    )
    d_left, d_up = passed(transposed(g), right, down)
    d_own = g.source_r * right + g.source_d * down + g.direct * seen
    return gates, d_left + g.mark_l * seen, d_up + g.mark_u * seen, d_own


def transposed(g: Any) -> Any:
    """Gates with which `passed` takes cotangents of (right, down) back to those of (left, up)."""
    return g._replace(ru=g.dl, dl=g.ru)


def coefficients(gates: Gates) -> Array:
    """The matrix of a tile: [..., n + py + px, n + py + px] for gates [..., px, py], n = px py.

    Rows: what node x py + y reads, then the states that leave to the right (by y) and at the bottom (by x). Columns: the source of
    every node, then the states that enter from the left and from above:

        [ G    M_l   M_u  ]
        [ S_r  T_rl  T_ru ]
        [ S_d  T_dl  T_du ]
    """
    px, py = gates.rl.shape[-2:]
    n, lead = px * py, gates.rl.shape[:-2]
    basis = jnp.broadcast_to(jnp.eye(n + py + px, dtype=gates.rl.dtype), (*lead, n + py + px, n + py + px))
    basis = jnp.moveaxis(basis, -2, 0)
    sources, lefts, tops = basis[:n].reshape(px, py, *basis.shape[1:]), basis[n : n + py], basis[n + py :]
    by_node = Gates(*(jnp.moveaxis(g, (-2, -1), (0, 1))[..., None] for g in gates))

    def column(lefts: Array, now: tuple) -> tuple[Array, tuple]:
        g, sources, top = now

        def one(up: Array, now: tuple) -> tuple[Array, tuple]:
            seen, right, down = node(now[0], now[1], up, now[2])
            return down, (seen, right)

        bottom, (seen, rights) = lax.scan(one, top, (g, lefts, sources), unroll=min(2, py))
        return rights, (seen, bottom)

    rights, (seen, bottoms) = lax.scan(column, lefts, (by_node, sources, tops))
    rows = jnp.concatenate([seen.reshape(n, *seen.shape[2:]), rights, bottoms])
    return jnp.moveaxis(rows, 0, -2)

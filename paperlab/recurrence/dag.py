"""Linear recurrences on directed acyclic graphs, with the state on the edges.

    C_e = sum over arcs (e', e) of T_{e'e} C_{e'} + b_e         an arc joins an edge (a, b) to an edge (b, c)

What is done once for a graph is numpy on the host (`oriented`, `arcs_of`, `prune_to_multitree`, `schedule`); what is done at every
step is one function on arrays (`dag_scan`) that compiles once for all graphs of a size. Batches of graphs are disjoint unions.

    impl         dependent steps                work           memory beside b, C, T
    sequential   number of edges E              L arcs         the widest edge: one state
    levels       longest path, D + 1 levels     D x (most arcs into one level)   one level
    hierarchical log2 E merges                  E^3 / 3 and E^2 a state          a matrix [E, E] (`dag_blocks`)

Backward runs the same recurrence on the graph turned round, so a gradient keeps T and C, not a copy of C for every level.

Source: pLSTM (arXiv 2506.11997), section 4 and appendix A.2; multitrees: section 4.2.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from paperlab.recurrence.dag_blocks import by_blocks, taken

IMPLEMENTATIONS = ("auto", "sequential", "levels", "hierarchical")


class Order(NamedTuple):
    """An order of evaluation, padded: edges [levels, W]; into, from_, arc [levels, A]: position in the level, earlier edge, arc."""

    edges: Array
    into: Array
    from_: Array
    arc: Array


class Schedule(NamedTuple):
    """What `dag_scan` follows: forward and backward, each by levels (arrays of integers; E and L stand for "nothing")."""

    forward: Order
    backward: Order


def oriented(pairs: Sequence | np.ndarray, *, reverse: bool = False) -> np.ndarray:
    """Undirected edges [E, 2] as a DAG: from the lower node to the higher (with `reverse` the other way), each once, sorted.

    Raises:
      ValueError: an edge from a node to itself.
    """
    pairs = np.asarray(pairs, int).reshape(-1, 2)
    if (pairs[:, 0] == pairs[:, 1]).any():
        raise ValueError(f"node {pairs[pairs[:, 0] == pairs[:, 1]][0, 0]} has an edge to itself: a DAG has none")
    edges = np.unique(np.sort(pairs, 1), axis=0)
    return edges[:, ::-1].copy() if reverse else edges


def arcs_of(edges: np.ndarray) -> np.ndarray:
    """[L, 2]: every pair of edges (a, b), (b, c), as positions in `edges`: the arcs of the line graph."""
    leaving = defaultdict(list)
    for e, (tail, _) in enumerate(edges):
        leaving[int(tail)].append(e)
    arcs = [(e, later) for e, (_, head) in enumerate(edges) for later in leaving[int(head)]]
    return np.array(arcs, int).reshape(-1, 2)


def topological(edges: np.ndarray, arcs: np.ndarray) -> np.ndarray:
    """The edges in an order in which arcs point forward: by level, then by (tail, head).

    Raises:
      ValueError: the arcs form a cycle.
    """
    level = levels(len(edges), arcs)
    return np.lexsort((edges[:, 1], edges[:, 0], level))


def levels(count: int, arcs: np.ndarray) -> np.ndarray:
    """The number of arcs of the longest path that ends at each of `count` edges.

    Raises:
      ValueError: the arcs form a cycle.
    """
    level, waiting = np.zeros(count, int), np.bincount(arcs[:, 1], minlength=count)
    after = defaultdict(list)
    for earlier, later in arcs:
        after[int(earlier)].append(int(later))
    ready = [int(e) for e in np.flatnonzero(waiting == 0)]
    done = 0
    while ready:
        e = ready.pop()
        done += 1
        for later in after[e]:
            level[later] = max(level[later], level[e] + 1)
            waiting[later] -= 1
            if waiting[later] == 0:
                ready.append(later)
    if done != count:
        raise ValueError(f"{count - done} of {count} edges lie on or after a cycle: the graph is not a DAG")
    return level


def prune_to_multitree(edges: np.ndarray, arcs: np.ndarray) -> np.ndarray:
    """The arcs that a greedy walk keeps so that at most one path joins any two edges (D-mode).

    Edges are visited in topological order; of its predecessors, in the same order, an edge keeps those that are not yet among its
    ancestors and have no ancestor that is.
    """
    rank = _ranks(edges, arcs)
    before: dict[int, list[int]] = defaultdict(list)
    for number in sorted(range(len(arcs)), key=lambda number: rank[arcs[number, 0]]):
        before[int(arcs[number, 1])].append(number)
    ancestors: dict[int, set[int]] = {}
    kept = []
    for e in np.argsort(rank):
        mine: set[int] = set()
        for number in before[int(e)]:
            earlier = int(arcs[number, 0])
            theirs = ancestors[earlier] | {earlier}
            if not mine & theirs:
                mine |= theirs
                kept.append(number)
        ancestors[int(e)] = mine
    return arcs[sorted(kept)]


def _ranks(edges: np.ndarray, arcs: np.ndarray) -> np.ndarray:
    """The place of every edge in the order by (tail, head) where that is topological, as it is for oriented edges."""
    rank = np.empty(len(edges), int)
    rank[np.lexsort((edges[:, 1], edges[:, 0]))] = np.arange(len(edges))
    if (rank[arcs[:, 0]] >= rank[arcs[:, 1]]).any():
        rank[topological(edges, arcs)] = np.arange(len(edges))
    return rank


def union(graphs: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> tuple[int, np.ndarray, np.ndarray]:
    """(nodes, edges, arcs) of several graphs side by side, as one graph."""
    nodes, edges, arcs = 0, [np.zeros((0, 2), int)], [np.zeros((0, 2), int)]
    for count, own_edges, own_arcs in graphs:
        arcs.append(own_arcs + sum(map(len, edges)))
        edges.append(own_edges + nodes)
        nodes += count
    return nodes, np.concatenate(edges), np.concatenate(arcs)


def schedule(
    count: int, arcs: np.ndarray, *, depth: int | None = None, width: int | None = None, fan: int | None = None
) -> Schedule:
    """The levels of `count` edges, forward and backward, each padded to depth x width edges and depth x fan arcs.

    Args:
      depth, width, fan: sizes to pad to, so that graphs of different shape share one compiled program; the smallest, if omitted.

    Raises:
      ValueError: a cycle, or a graph that is larger than a given size.
    """
    arcs = np.asarray(arcs, int).reshape(-1, 2)
    orders = []
    for turned in (arcs, arcs[:, ::-1]):
        level = levels(count, turned)
        found = order(level, turned, depth=depth, width=width, fan=fan)
        orders.append(Order(*(jnp.asarray(x, jnp.int32) for x in found)))
    return Schedule(*orders)


def order(
    level: np.ndarray,
    arcs: np.ndarray,
    *,
    depth: int | None = None,
    width: int | None = None,
    fan: int | None = None,
    room: tuple[int, int] | None = None,
) -> Order:
    """The order of evaluation by known levels, numpy int32: for batches, whose graphs' levels are found once.

    Args:
      level: [E], as `levels` gives it.  arcs: [L, 2] of these edges.
      depth, width, fan: as in `schedule`.
      room: (E, L) of the arrays that `dag_scan` will get, where these are padded.

    Raises:
      ValueError: a graph that is larger than a given size.
    """
    of_arc = level[arcs[:, 1]]
    count, L = room or (len(level), len(arcs))
    sizes = {
        "depth": (depth, int(level.max(initial=0)) + 1),
        "width": (width, int(np.bincount(level, minlength=1).max(initial=1))),
        "fan": (fan, int(np.bincount(of_arc, minlength=1).max(initial=0))),
    }
    for name, (given, needed) in sizes.items():
        if given is not None and given < needed:
            raise ValueError(f"{name}={given}: this graph needs {needed}")
    D, W, A = (needed if given is None else given for given, needed in sizes.values())
    edges, slot = np.full((D, W), count, np.int32), _places(level)
    edges[level, slot] = np.arange(len(level))
    into, from_, arc = (np.full((D, A), fill, np.int32) for fill in (W - 1, count, L))
    place = of_arc, _places(of_arc)
    into[place], from_[place], arc[place] = slot[arcs[:, 1]], arcs[:, 0], np.arange(len(arcs))
    return Order(edges, into, from_, arc)  # type: ignore[arg-type]


def _places(level: np.ndarray) -> np.ndarray:
    """The place of every entry among those of its level."""
    sort = np.argsort(level, kind="stable")
    counts = np.bincount(level)
    place = np.empty(len(level), int)
    place[sort] = np.arange(len(level)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place


def dag_scan(T: Array, b: Array, schedule: Schedule, arcs: Array, *, impl: str = "auto") -> Array:
    """The states of all edges.

    Args:
      T: transitions, [L, ...], whose axes after the first are the leading axes of a state (say [L, H]).
      b: what enters each edge from its own tail, [E, *state], real floating point.
      schedule: of these edges and arcs, by `schedule`.
      arcs: [L, 2] integers, positions in b: (earlier edge, later edge). Arcs that the schedule does not know are padding: say E.
      impl: "auto" (levels), "levels", "hierarchical", or "sequential", one edge after another.

    Returns:
      C [E, *state] in the dtype of b, computed in float32 (float64).

    Raises:
      ValueError: shapes that do not fit, or an unknown `impl`.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    if arcs.shape != (T.shape[0], 2):
        raise ValueError(f"arcs must be [L, 2] with the {T.shape[0]} arcs of T, got {arcs.shape}")
    if T.shape[1:] != b.shape[1 : T.ndim]:
        raise ValueError(f"T {T.shape} after its first axis must begin a state, {b.shape[1:]}")
    T, b, arcs = jnp.asarray(T), jnp.asarray(b), jnp.asarray(arcs)
    wide = jnp.promote_types(b.dtype, jnp.float32)
    T = T.astype(wide).reshape(*T.shape, *(1,) * (b.ndim - T.ndim))
    if 0 in (b.shape[0], T.shape[0]):
        return b
    if impl == "sequential":
        return _one_by_one(T, b.astype(wide), schedule.forward, arcs).astype(b.dtype)
    if impl == "hierarchical":
        return by_blocks(T, b.astype(wide), levels_of(schedule.forward, b.shape[0]), arcs).astype(b.dtype)
    return _by_levels(T, b.astype(wide), schedule, arcs).astype(b.dtype)


@partial(jax.custom_vjp)
def _by_levels(T: Array, b: Array, schedule: Schedule, arcs: Array) -> Array:
    return _sweep(T, b, schedule.forward)


def _sweep(T: Array, b: Array, order: Order) -> Array:
    """Level after level, each adding to the states of its edges; the last places of T and b stand for nothing."""
    T, b = (jnp.concatenate([x, jnp.zeros_like(x[:1])]) for x in (T, b))
    targets = jnp.take_along_axis(order.edges, order.into, 1)

    def step(C: Array, now: tuple[Array, Array, Array]) -> tuple[Array, None]:
        target, from_, arc = now
        return C.at[target].add(T[arc] * C[from_]), None

    C, _ = lax.scan(step, b, (targets, order.from_, order.arc))
    return C[:-1]


def _forward(T: Array, b: Array, schedule: Schedule, arcs: Array) -> tuple[Array, tuple]:
    C = _by_levels(T, b, schedule, arcs)
    return C, (T, C, schedule, arcs)


def _backward(kept: tuple, g: Array) -> tuple:
    """l_e = g_e + sum over arcs (e, e') of T l_e': the recurrence on the graph turned round."""
    T, C, schedule, arcs = kept
    l = _by_levels(T, g, Schedule(schedule.backward, schedule.forward), arcs[:, ::-1])
    dT = taken(l, arcs[:, 1]) * taken(C, arcs[:, 0])
    axes = tuple(i for i in range(T.ndim) if T.shape[i] == 1 and dT.shape[i] != 1)
    return dT.sum(axes, keepdims=True), l, None, None


_by_levels.defvjp(_forward, _backward)


def levels_of(order: Order, count: int) -> Array:
    """[count], the level of every edge, read off an order of evaluation; padded edges stand last."""
    depth = order.edges.shape[0]
    levels = jnp.broadcast_to(jnp.arange(depth)[:, None], order.edges.shape)
    return jnp.full(count, depth).at[order.edges].set(levels, mode="drop")


def _one_by_one(T: Array, b: Array, order: Order, arcs: Array) -> Array:
    """Edge after edge, in the order of the schedule: each reads all of its predecessors."""
    edges = order.edges.reshape(-1)

    def step(C: Array, e: Array) -> tuple[Array, None]:
        mine = (arcs[:, 1] == e).reshape(-1, *(1,) * (C.ndim - 1))
        arriving = jnp.where(mine, T * taken(C, arcs[:, 0]), 0).sum(0)
        return C.at[e].set(b[jnp.minimum(e, len(b) - 1)] + arriving, mode="drop"), None

    return lax.scan(step, jnp.zeros_like(b), edges)[0]


def read(C: Array, weight: Array, heads_of: Array, nodes: int) -> Array:
    """What each node sees: the sum over the edges that enter it of weight_e C_e.

    Args:
      C: [E, ...]; weight: [E, ...], broadcast over the last axes of C; heads_of: [E], the node that each edge enters.

    Returns:
      [nodes, ...].
    """
    weight = weight.reshape(*weight.shape, *(1,) * (C.ndim - weight.ndim))
    return jax.ops.segment_sum(weight * C, heads_of, num_segments=nodes)

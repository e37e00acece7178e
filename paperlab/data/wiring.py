"""Batches of graphs as disjoint unions, padded so that one compiled program serves them all.

What depends on a graph alone is found once (`prepared`): both directions of its edges, the arcs between edges, the arcs that make a
multitree, and the level of every edge in each. A batch is then a matter of shifting and joining numpy arrays (`union`).

Sizes. The graphs of a split are sorted by size and cut into as many strata as a batch has places; a batch takes one graph of each
stratum, by a permutation of its own in every epoch. So each graph comes once an epoch, every batch has about the same size, and the
sum of the largest of each stratum bounds them all: `sizes` is exact and tight.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from paperlab.recurrence import dag

ORDERS = 6  # three sets of arcs (full, multitree, multitree of the graph turned round), each forward and backward
STEP = 8  # sizes are rounded up to multiples of it


class Graph(NamedTuple):
    """nodes float32 [N, F]; edges int [E, 2] from the lower node to the higher; beside float32 [E, K]; label;

    arcs: three arrays [L, 2] (full; multitree; multitree of the graph turned round); levels: six arrays [E].
    """

    nodes: np.ndarray
    edges: np.ndarray
    beside: np.ndarray
    label: int
    arcs: tuple[np.ndarray, ...]
    levels: tuple[np.ndarray, ...]


class Sizes(NamedTuple):
    """Of one union: nodes, edges, arcs, levels, edges of a level, arcs into a level, graphs; and slots, edges of one node."""

    nodes: int
    edges: int
    arcs: int
    depth: int
    width: int
    fan: int
    graphs: int
    slots: int


def prepared(nodes: np.ndarray, edges: np.ndarray, beside: np.ndarray, label: int) -> Graph:
    """A graph with what its batches need; `edges` each once, in any order."""
    order = np.lexsort((edges.max(1, initial=0), edges.min(1, initial=0))) if len(edges) else np.zeros(0, int)
    edges, beside = np.sort(edges, 1)[order].reshape(-1, 2), beside[order]
    full = dag.arcs_of(edges)
    turned = dag.prune_to_multitree(-edges[:, ::-1], full[:, ::-1])  # as if its nodes were numbered the other way round
    arcs = (full, dag.prune_to_multitree(edges, full), turned)
    levels = tuple(dag.levels(len(edges), way) for some in arcs for way in (some, some[:, ::-1]))
    return Graph(nodes, edges, beside, label, arcs, levels)


def strata(graphs: list[Graph], places: int) -> list[np.ndarray]:
    """Indices of the graphs in `places` groups of about the same size, from the smallest to the largest; some may be empty."""
    by_size = sorted(range(len(graphs)), key=lambda g: (len(graphs[g].edges), len(graphs[g].nodes), g))
    batches = -(-len(graphs) // places)
    return [np.array(by_size[s * batches : (s + 1) * batches], int) for s in range(places)]


def batch_of(groups: list[np.ndarray], index: int, seed: int | None) -> list[int]:
    """The graph at every place of batch `index` (-1: none); in reading order where there is no seed, else shuffled by epochs."""
    batches = max(map(len, groups))
    epoch, number = divmod(index, batches)
    places = [np.arange(batches)] * len(groups) if seed is None else _shuffled(seed, epoch, batches, len(groups))
    return [
        int(group[place[number]]) if place[number] < len(group) else -1
        for group, place in zip(groups, places, strict=True)
    ]


@lru_cache(maxsize=8)
def _shuffled(seed: int, epoch: int, batches: int, groups: int) -> list[np.ndarray]:
    rng = np.random.default_rng((seed, epoch))
    return [rng.permutation(batches) for _ in range(groups)]


def sizes(graphs: list[Graph], groups: list[np.ndarray], rows: int) -> Sizes:
    """What no union of these strata exceeds, where place s of a batch stands in row s mod `rows`."""
    depth = max((level.max(initial=-1) + 1 for graph in graphs for level in graph.levels), default=1)
    counts = np.array([(len(g.nodes), len(g.edges), len(g.arcs[0])) for g in graphs])
    level_counts = np.zeros((len(graphs), 2, ORDERS, max(depth, 1)), int)
    for number, graph in enumerate(graphs):
        for order, level in enumerate(graph.levels):
            later = graph.arcs[order // 2][:, 1 - order % 2]
            level_counts[number, 0, order, :] = np.bincount(level, minlength=level_counts.shape[-1])
            level_counts[number, 1, order, :] = np.bincount(level[later], minlength=level_counts.shape[-1])
    largest = [0] * 5
    for row in range(rows):
        mine = [group for group in groups[row::rows] if len(group)]
        if mine:
            nodes, edges, arcs = sum(counts[group].max(0) for group in mine)
            width, fan = sum(level_counts[group].max(0) for group in mine).reshape(2, -1).max(1)
            largest = [max(pair) for pair in zip(largest, (nodes, edges, arcs, width, fan), strict=True)]
    degree = max((int(degrees(g.edges, len(g.nodes)).max(initial=0)) for g in graphs), default=0)
    nodes, edges, arcs, width, fan = (_rounded(size) for size in largest)
    return Sizes(nodes, edges, arcs, _rounded(depth, 2), width, fan, -(-len(groups) // rows), max(degree, 1))


def larger(first: Sizes, second: Sizes) -> Sizes:
    """The larger of each."""
    return Sizes(*map(max, first, second))


def _rounded(size: int, step: int = STEP) -> int:
    return max(-(-int(size) // step) * step, step)


def degrees(edges: np.ndarray, nodes: int) -> np.ndarray:
    """[nodes], the number of edges of each node."""
    return np.bincount(edges.reshape(-1), minlength=nodes)


def places_among(ends: np.ndarray) -> np.ndarray:
    """For every edge its place among those with the same end, in the order of the edges."""
    sort = np.argsort(ends, kind="stable")
    starts = np.flatnonzero(np.diff(ends[sort], prepend=-1))
    place = np.empty(len(ends), np.int32)
    place[sort] = np.arange(len(ends)) - np.repeat(starts, np.diff(np.append(starts, len(ends))))
    return place


def union(graphs: list[Graph | None], room: Sizes, features: tuple[int, int]) -> dict[str, np.ndarray]:
    """Some graphs side by side as one row of a batch.

    Args:
      graphs: at most room.graphs; None leaves a place empty.
      room: sizes to pad to.
      features: columns of nodes and of edges.

    Returns:
      nodes [N, F], beside [E, K], float32; degree [N]; graph [N] (room.graphs: padding); tails, heads, exits, entries [E] (padding:
      N); arcs [3, L, 2] (padding: E); order_edges [3, 2, D, W], order_into, order_from, order_arc [3, 2, D, A]; labels [G], int32;
      weights [G], float32, 0 where there is no graph.
    """
    some = [(place, graph) for place, graph in enumerate(graphs) if graph is not None]
    node_at = np.cumsum([0, *(len(g.nodes) for _, g in some)])
    edge_at = np.cumsum([0, *(len(g.edges) for _, g in some)])
    edges = _joined([g.edges + at for (_, g), at in zip(some, node_at, strict=False)])
    arcs = [_joined([g.arcs[kind] + at for (_, g), at in zip(some, edge_at, strict=False)]) for kind in range(3)]
    row: dict[str, np.ndarray] = {
        "nodes": _padded([g.nodes for _, g in some], (room.nodes, features[0]), 0, np.float32),
        "beside": _padded([g.beside for _, g in some], (room.edges, features[1]), 0, np.float32),
        "degree": _padded([degrees(edges, node_at[-1])], (room.nodes,), 0),
        "graph": _padded([np.full(len(g.nodes), place) for place, g in some], (room.nodes,), room.graphs),
        "tails": _padded([edges[:, 0]], (room.edges,), room.nodes),
        "heads": _padded([edges[:, 1]], (room.edges,), room.nodes),
        "exits": _padded([places_among(edges[:, 0])], (room.edges,), 0),
        "entries": _padded([places_among(edges[:, 1])], (room.edges,), 0),
        "arcs": np.stack([_padded([each], (room.arcs, 2), room.edges) for each in arcs]),
        "labels": np.zeros(room.graphs, np.int32),
        "weights": np.zeros(room.graphs, np.float32),
    }
    for place, graph in some:
        row["labels"][place], row["weights"][place] = graph.label, 1
    return row | _orders([g.levels for _, g in some], arcs, room)


def _orders(levels: list[tuple[np.ndarray, ...]], arcs: list[np.ndarray], room: Sizes) -> dict[str, np.ndarray]:
    found = []
    for number in range(ORDERS):
        level = _joined([own[number] for own in levels], ())
        directed = arcs[number // 2][:, :: -1 if number % 2 else 1]
        limits = {"depth": room.depth, "width": room.width, "fan": room.fan, "room": (room.edges, room.arcs)}
        found.append(dag.order(level, directed, **limits))  # type: ignore[arg-type]
    stacked = {f"order_{name}": np.stack([getattr(one, name) for one in found]) for name in ("edges", "into", "arc")}
    stacked["order_from"] = np.stack([one.from_ for one in found])
    return {name: a.reshape(3, 2, *a.shape[1:]) for name, a in stacked.items()}


def _joined(parts: list[np.ndarray], trailing: tuple[int, ...] = (2,)) -> np.ndarray:
    return np.concatenate([np.zeros((0, *trailing), int), *parts])


def _padded(parts: list[np.ndarray], shape: tuple[int, ...], fill: int, dtype: type = np.int32) -> np.ndarray:
    whole: np.ndarray = np.full(shape, fill, dtype)
    if parts:
        joined = np.concatenate(parts)
        whole[: len(joined)] = joined
    return whole

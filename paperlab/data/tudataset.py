"""Graphs in the format of the TUDataset collection (Morris et al. 2020), from a local folder.

    <NAME>_A.txt                 one edge a line, "i, j", nodes of all graphs numbered through from 1
    <NAME>_graph_indicator.txt   line i: the graph of node i, from 1
    <NAME>_graph_labels.txt      line g: the class of graph g
    <NAME>_node_labels.txt, _node_attributes.txt, _edge_labels.txt, _edge_attributes.txt      where the set has them

Labels become one-hot features, attributes follow them as they are. Edges lose their direction, their doubles, and those from a node
to itself.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from paperlab.errors import ConfigError


class RawGraph(NamedTuple):
    """nodes float32 [N, F]; edges int [E, 2], each once, from the lower node to the higher, sorted; beside float32 [E, K]."""

    nodes: np.ndarray
    edges: np.ndarray
    beside: np.ndarray
    label: int


def read(folder: str | Path, field: str = "config.data.path") -> list[RawGraph]:
    """The graphs of a set, classes numbered from 0 in the order of their labels.

    Raises:
      ConfigError: one line that names the file and says what is wrong with it.
    """
    folder = Path(folder)
    found = sorted(folder.glob("*_A.txt")) if folder.is_dir() else []
    if len(found) != 1:
        what = "is no folder" if not folder.is_dir() else f"holds {len(found)} files *_A.txt"
        raise ConfigError(
            f"{field}={folder}: {what}; give the folder of one TUDataset, such as MUTAG/ with MUTAG_A.txt"
        )
    prefix = str(found[0])[: -len("_A.txt")]
    graph_of = _column(prefix, "graph_indicator") - 1
    labels = np.unique(_column(prefix, "graph_labels"), return_inverse=True)[1]
    count, N = len(labels), len(graph_of)
    if N == 0 or graph_of.min() < 0 or graph_of.max() >= count or (np.diff(graph_of) < 0).any():
        raise ConfigError(f"{prefix}_graph_indicator.txt: graphs must be numbered from 1 to {count}, in order")
    pairs = _table(prefix, "A", int, 2) - 1
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= N):
        raise ConfigError(f"{found[0]}: nodes must be numbered from 1 to {N}")
    if (graph_of[pairs[:, 0]] != graph_of[pairs[:, 1]]).any():
        raise ConfigError(f"{found[0]}: an edge joins two graphs")
    nodes = _features(prefix, "node", N)
    beside = _features(prefix, "edge", len(pairs))
    edges, beside = _each_once(pairs, beside)
    starts = np.searchsorted(graph_of, np.arange(count + 1))
    cuts = np.searchsorted(graph_of[edges[:, 0]], np.arange(count + 1))
    return [
        RawGraph(
            nodes[starts[g] : starts[g + 1]],
            edges[cuts[g] : cuts[g + 1]] - starts[g],
            beside[cuts[g] : cuts[g + 1]],
            int(labels[g]),
        )
        for g in range(count)
    ]


def _each_once(pairs: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undirected edges from the lower node to the higher, sorted, with the features of their first mention."""
    real = pairs[:, 0] != pairs[:, 1]
    edges, first = np.unique(np.sort(pairs[real], 1), axis=0, return_index=True)
    return edges.reshape(-1, 2), beside[real][first]


def _features(prefix: str, of: str, rows: int) -> np.ndarray:
    """One-hot labels, then attributes: float32 [rows, F]; no columns where the set has neither."""
    parts = [np.zeros((rows, 0), np.float32)]
    for name in (f"{of}_labels", f"{of}_attributes"):
        if not Path(f"{prefix}_{name}.txt").is_file():
            continue
        table = _table(prefix, name, float)
        if len(table) != rows:
            raise ConfigError(f"{prefix}_{name}.txt: {len(table)} lines for {rows} {of}s")
        if name.endswith("labels"):
            for column in table.T:
                known, index = np.unique(column, return_inverse=True)
                parts.append(np.eye(len(known), dtype=np.float32)[index])
        else:
            parts.append(table.astype(np.float32))
    return np.concatenate(parts, 1)


def _column(prefix: str, name: str) -> np.ndarray:
    return _table(prefix, name, int, 1)[:, 0]


def _table(prefix: str, name: str, kind: type, columns: int = 0) -> np.ndarray:
    """Numbers with commas between them, [lines, columns]."""
    file = Path(f"{prefix}_{name}.txt")
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {str(error).splitlines()[0]}") from None
    if columns and table.shape[1] != columns:
        raise ConfigError(f"{file}: {table.shape[1]} numbers a line, not {columns}")
    return table.astype(kind)

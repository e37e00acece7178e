"""Graphs that only paths tell apart: do the two ends of every chain have the same colour?

    red - o - o - o - o - red         one chain of several in a graph; twigs hang from its inner nodes
    blue - o - o - o - blue           label 1; with the last two ends exchanged: label 0

Half of the ends of a graph are red and half blue, whatever the label, and chains are longer than a neighbourhood: neither the bag
of nodes nor a few rounds of messages between neighbours hold the answer, only what travels along a chain. Nodes are numbered along
their chain, chains shuffled into each other, so that a direction from lower to higher numbers has a path through each.

Graph i of a split is a function of (seed, split, i).
"""

import numpy as np

KINDS = 4  # two of inner nodes, at random; red; blue


def chains(
    index: int,
    *,
    seed: int = 0,
    split: int = 0,
    count: int = 2,
    shortest: int = 8,
    longest: int = 16,
    twigs: float = 0.3,
) -> tuple[np.ndarray, np.ndarray, int]:
    """One graph: nodes float32 [N, KINDS] (one-hot), edges int [E, 2], label.

    Args:
      index, seed, split: which one; splits are sets that never meet.
      count: chains of a graph, even.
      shortest, longest: nodes of a chain, both included.
      twigs: the share of inner nodes from which one more node hangs.
    """
    rng = np.random.default_rng((seed, split, index))
    label = int(rng.integers(2))
    kinds: list[np.ndarray] = []
    edges: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    for first, last in _ends(count, label, rng):
        length = int(rng.integers(shortest, longest + 1))
        start = sum(len(part) for part in kinds)
        along = np.sort(rng.random(length))
        inner = 1 + np.flatnonzero(rng.random(max(length - 2, 0)) < twigs)
        own = rng.integers(2, size=length + len(inner))
        own[0], own[length - 1] = 2 + first, 2 + last
        spine = start + np.arange(length)
        edges += [
            np.stack([spine[:-1], spine[1:]], 1),
            np.stack([spine[inner], spine[-1] + 1 + np.arange(len(inner))], 1),
        ]
        kinds.append(own)
        keys += [along, along[inner] + (1 - along[inner]) * rng.random(len(inner))]
    number = np.argsort(np.argsort(np.concatenate(keys), kind="stable"), kind="stable")
    nodes = np.zeros((len(number), KINDS), np.float32)
    nodes[number, np.concatenate(kinds)] = 1
    return nodes, number[np.concatenate(edges)], label


def _ends(count: int, label: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 2] colours: equal in a row (label 1) or different (0), as many of each in all."""
    colour = rng.permutation(np.arange(count) % 2)
    ends = np.stack([colour, colour if label else 1 - colour], 1)
    return ends if label else rng.permuted(ends, axis=1)

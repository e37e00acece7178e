"""Pointer chasing: a permutation, a start, and how many pointers to follow.

    permutation p of 0 .. n-1, start s, hops k      ->      p(p(... p(s))), k times

A row has n + 1 facts of two symbols: n pairs (from i, to p(i)) in a random order, and at last the question (ask, to s). What k is,
is not written in the row: the number of steps that a network takes may follow it. With `say_hops` the question is (ask k, to s).
"""

import numpy as np

from paperlab.data.synthetic import addressed
from paperlab.errors import ConfigError


def vocab_size(nodes: int, most_hops: int) -> int:
    """Symbols: padding, "from" and "to" of every node, "ask" and "ask k" up to `most_hops`."""
    return 1 + 2 * nodes + 1 + most_hops


def examples(
    indices_B: np.ndarray, *, seed: int = 0, nodes: int = 16, fewest: int = 1, most: int = 4, say_hops: bool = False
) -> dict[str, np.ndarray]:
    """The examples `indices_B` as a batch.

    Args:
      indices_B: example numbers.
      seed: one seed is one endless set of examples.
      nodes: n.
      fewest, most: hops, drawn evenly between.
      say_hops: writes k into the question.

    Returns:
      tokens int32 [B, nodes + 1, 2], the question last; labels, hops int32 [B]; weights float32 [B], all 1.

    Raises:
      ConfigError: fewer than two nodes, hops that cannot be.
    """
    check(nodes, fewest, most)
    streams = addressed.streams(indices_B, seed)
    pointers = np.argsort(addressed.uniform(streams, nodes, 0), axis=1)
    order = np.argsort(addressed.uniform(streams, nodes, 1), axis=1)
    start = addressed.integers(streams, 1, nodes, 2)
    hops = fewest + addressed.integers(streams, 1, most - fewest + 1, 3)
    at = start
    for k in range(most):
        at = np.where(k < hops, np.take_along_axis(pointers, at, 1), at)
    asked = 1 + 2 * nodes + (hops if say_hops else 0 * hops)
    left = np.concatenate([1 + order, asked], 1)
    right = 1 + nodes + np.concatenate([np.take_along_axis(pointers, order, 1), start], 1)
    return {
        "tokens": np.stack([left, right], -1).astype(np.int32),
        "labels": at[:, 0].astype(np.int32),
        "hops": hops[:, 0].astype(np.int32),
        "weights": np.ones(len(at), np.float32),
    }


def check(nodes: int, fewest: int, most: int) -> None:
    """Raises ConfigError for options of `examples` out of range."""
    if nodes < 2:
        raise ConfigError(f"config.task.nodes={nodes}: must be at least 2")
    if not 1 <= fewest <= most:
        raise ConfigError(f"config.task.fewest={fewest}, config.task.most={most}: must be 1 <= fewest <= most hops")

"""What a depth program costs, counted: multiplications of a forward pass, and bytes that decoding keeps.

    a layer, on k of T tokens        2 P k  +  attention 2 W k^2 (among themselves) or 2 W k T (keys of all tokens)
    training                         3 times a forward pass

with P the weights that every token is multiplied with and W the width of the attention; the upper triangle is not computed.
Policies of a cache: "recursion" keeps, for every application, the tokens that entered it; "shared" keeps those of the first loop
and no others.

Sources: Mixture-of-Recursions (arXiv 2507.10524, sections 2.2 and 3, appendix B).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from paperlab.depth.deltas import targets
from paperlab.depth.program import OUTSIDE, Program

POLICIES = ("recursion", "shared", "update")


@dataclass(frozen=True)
class LayerCosts:
    """One layer: `weights` P; `attention` W (0 for a recurrent mixer); `cache` numbers that a token leaves in its cache (2 G D);
    `shared_weights`: those of P that make keys and values."""

    weights: int
    attention: int = 0
    cache: int = 0
    shared_weights: int = 0


def layer_weights(params: Any, pattern: str = r"/kernel$") -> int:
    """P of one layer, from its parameters or their shapes."""
    return sum(math.prod(a.shape) for a in targets(params, pattern).values())


def tokens_of(program: Program, length: int, capacity: Sequence[float] = ()) -> list[int]:
    """How many of `length` tokens enter each application; loop r takes the share `capacity[r]`, all where it is omitted."""
    share = tuple(capacity) or (1.0,) * max(program.times, 1)
    return [length if loop == OUTSIDE else max(1, math.floor(share[loop] * length + 1e-6)) for loop in program.loops]


def forward_flops(
    program: Program, layer: LayerCosts, length: int, *, capacity: Sequence[float] = (), policy: str = "recursion"
) -> float:
    """Of all layers on one sequence; embedding, routers and head are not counted.

    With "shared" caches the later loops make no keys and values, and their queries see all tokens.
    """
    _check(policy)
    total = 0.0
    for loop, k in zip(program.loops, tokens_of(program, length, capacity), strict=True):
        reused = policy == "shared" and loop > 0
        keys = length if policy != "recursion" and loop > 0 else k
        weights = layer.weights - (layer.shared_weights if reused else 0)
        total += 2.0 * weights * k + 2.0 * layer.attention * k * keys
    return total


def cache_entries(program: Program, length: int, *, capacity: Sequence[float] = (), policy: str = "recursion") -> int:
    """Token entries that all caches hold after `length` tokens."""
    _check(policy)
    tokens = tokens_of(program, length, capacity)
    return sum(k for loop, k in zip(program.loops, tokens, strict=True) if policy == "recursion" or loop <= 0)


def cache_bytes(
    program: Program,
    layer: LayerCosts,
    length: int,
    itemsize: int,
    *,
    capacity: Sequence[float] = (),
    policy: str = "recursion",
) -> int:
    """Bytes of the keys and values of one sequence."""
    return cache_entries(program, length, capacity=capacity, policy=policy) * layer.cache * itemsize


def state_bytes(states: Any) -> int:
    """Bytes that a state (or its shapes) takes, whatever the mixer."""
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(states))


def _check(policy: str) -> None:
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r}: choose one of {', '.join(POLICIES)}")

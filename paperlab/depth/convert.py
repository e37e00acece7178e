"""From layers of their own to shared ones: which weights a shared layer starts from, and what LoRA brings back.

    stepwise    K layers evenly from the first to the last              random    K layers, sorted
    lower       the first K           upper    the last K               average   the mean of all layers that one layer replaces

Source: Relaxed Recursive Transformers (arXiv 2410.20672, sections 3.1 to 3.3, appendices C and F).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.depth.deltas import TARGETS, Lora, svd_lora, targets
from paperlab.depth.program import Program

INITS = ("stepwise", "average", "lower", "upper", "random")
Tree = Any


def sources(program: Program, init: str, seed: int = 0) -> tuple[int, ...] | None:
    """The layer of the untied model that each unique layer copies; None for "average", which copies none.

    The untied model has a layer for every application. Layers that run once, outside of all loops, copy their own.

    Raises:
      ValueError: an init that there is not.
    """
    if init not in INITS:
        raise ValueError(f"init={init!r}: choose one of {', '.join(INITS)}")
    if init == "average":
        return None
    inside = [j for j, loop in enumerate(program.loops) if loop >= 0] or list(range(len(program)))
    inner = list(dict.fromkeys(program.layers[j] for j in inside))
    first, last, K = inside[0], inside[-1], len(inner)
    if init == "stepwise":
        chosen = [int(np.rint(place)) for place in np.linspace(first, last, K)]
    elif init == "lower":
        chosen = list(range(first, first + K))
    elif init == "upper":
        chosen = list(range(last - K + 1, last + 1))
    else:
        draw = np.random.default_rng(seed).choice(np.arange(first, last + 1), K, replace=False)
        chosen = sorted(int(i) for i in draw)
    own = {u: j for j, u in enumerate(program.layers) if u not in inner}
    found = {**own, **dict(zip(sorted(inner), chosen, strict=True))}
    return tuple(found[u] for u in range(program.unique))


def tie(untied: Tree, program: Program, init: str = "stepwise", *, seed: int = 0) -> Tree:
    """Shared weights [unique, ...] from those of a plain stack [applications, ...]; one array a shared layer, norms included.

    Raises:
      ValueError: an init that there is not, or a stack of another depth.
    """
    depths = {a.shape[0] for a in jax.tree.leaves(untied)}
    if depths != {len(program)}:
        raise ValueError(f"the program has {len(program)} applications, the untied stack {sorted(depths)} layers")
    chosen = sources(program, init, seed)
    if chosen is not None:
        return jax.tree.map(lambda a: jnp.asarray(a)[jnp.asarray(chosen)], untied)
    groups = [[j for j, u in enumerate(program.layers) if u == unique] for unique in range(program.unique)]
    if not all(groups):
        raise ValueError(f"init='average': the program never runs layer {groups.index([])}")
    return jax.tree.map(lambda a: jnp.stack([a[jnp.asarray(group)].mean(0) for group in groups]), untied)


def untie(tied: Tree, program: Program) -> Tree:
    """The plain stack [applications, ...] that computes what the shared layers [unique, ...] do."""
    return jax.tree.map(lambda a: a[jnp.asarray(program.layers)], tied)


def residual_lora(
    untied: Tree, tied: Tree, program: Program, rank: int, *, pattern: str = TARGETS, seed: int = 0
) -> Lora:
    """LoRA pairs [applications, ...] that bring each application as near to its own layer as the rank allows.

    Where a shared layer is the own one already (residual exactly zero) an SVD would leave A without a gradient: A is drawn and
    B is zero there. The scale of such pairs is 1.
    """
    draw = np.random.default_rng(seed)
    wanted, shared = targets(untied, pattern), targets(tied, pattern)
    found: Lora = {}
    for name, W in wanted.items():
        residual = np.asarray(W, np.float64) - np.asarray(shared[name], np.float64)[list(program.layers)]
        a, b = svd_lora(residual, rank)
        same = ~residual.any(axis=(-2, -1))
        a[same] = draw.standard_normal(a[same].shape) * a.shape[-2] ** -0.5
        b[same] = 0
        found[name] = {"a": jnp.asarray(a, W.dtype), "b": jnp.asarray(b, W.dtype)}
    return found


def unlike(untied: Tree, tied: Tree, program: Program, pattern: str = TARGETS) -> dict[str, float]:
    """Sum over applications of |W_l - W'|_F^2, by matrix: what sharing changes."""
    shared = targets(tied, pattern)
    return {
        name: float(
            np.square(np.asarray(W, np.float64) - np.asarray(shared[name], np.float64)[list(program.layers)]).sum()
        )
        for name, W in targets(untied, pattern).items()
    }

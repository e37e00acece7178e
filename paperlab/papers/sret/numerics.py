"""Claims that need no training: sizes, products, and which tokens see which (claims 1 and 4)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from paperlab.evidence import Laboratory, Outcome
from paperlab.papers.sret.attention import order_of
from paperlab.papers.sret.network import SReT
from paperlab.papers.sret.stage import Pass, Stage

S: dict[str, Any] = {"dims": (126, 252, 504), "heads": (3, 6, 12), "ffn_ratio": 3.0, "nll_ratio": 2.0}
LT: dict[str, Any] = {"ffn_ratio": 4.0}
SIZES: dict[
    str, tuple[dict[str, Any], int, int, float]
] = {  # name: options, side of the images, published parameters, thousand million products without slicing
    "T": ({}, 224, 4_755_979, 1.366),
    "LT": (LT, 224, 4_988_024, 1.418),
    "S": (S, 224, 20_899_692, 4.671),
    "T, 384 pixels": ({}, 384, 4_853_259, 6.41),
    "S, 384 pixels": (S, 384, 21_091_212, 18.44),
    "S, 512 pixels": (S, 512, 21_317_004, 42.67),
}
SAVED = {"T": 0.185, "LT": 0.179, "S": 0.107}  # of the products, by slicing at 224 pixels


def parameters(name: str) -> int:
    """Numbers that gradients train in a published size."""
    options, side, *_ = SIZES[name]
    model = SReT(1000, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def published_sizes(lab: Laboratory) -> Outcome:
    """The largest deviation of a parameter count from the published one."""
    del lab
    found = {name: parameters(name) for name in SIZES}
    return Outcome(max(abs(found[name] - SIZES[name][2]) for name in SIZES), None, [], found)


def published_products(lab: Laboratory) -> Outcome:
    """The largest relative deviation of the products of one image from the published ones."""
    del lab
    found = {
        name: SReT(1000, **options).macs((side, side), sliced=False) / 1e9
        for name, (options, side, *_) in SIZES.items()
    }
    return Outcome(max(abs(found[name] / SIZES[name][3] - 1) for name in SIZES), None, [], found)


def slicing_saves(lab: Laboratory) -> Outcome:
    """The largest deviation of the share of products that slicing saves from the one it should."""
    del lab
    found = {}
    for name in SAVED:
        model = SReT(1000, **SIZES[name][0])
        found[name] = 1 - model.macs((224, 224)) / model.macs((224, 224), sliced=False)
    return Outcome(max(abs(found[name] - SAVED[name]) for name in SAVED), None, [], found)


def reach(groups: tuple[int, int], permuted: bool, *, seed: int = 0, tokens: int = 64, width: int = 8) -> Array:
    """bool [N, N]: whether output token i depends on input token j, after one block's two passes; weights drawn from `seed`."""
    passes = tuple(Pass(g, permuted and b > 0) for b, g in enumerate(groups))
    stage = Stage(width, 2, 1, passes, 2 * width, width)
    x = jax.random.normal(jax.random.key(seed), (1, tokens, width))
    variables = stage.init(jax.random.key(seed + 1), x)
    order = order_of("random", (1, tokens), groups[1], seed) if permuted else None
    plain = np.arange(tokens, dtype=np.int32)
    orders = jnp.asarray(np.stack([plain, plain if order is None else order])[None])
    slopes = jax.jit(jax.jacrev(lambda x: stage.apply(variables, x, orders)[0].sum(-1)))(x)
    return jnp.abs(slopes[:, 0]).max(-1) > 0


def permutation_mixes(lab: Laboratory) -> Outcome:
    """The share of pairs (output token, input token) that depend, 4 groups and then 2 in a drawn order; the least of 3 seeds."""
    del lab
    each = [float(reach((4, 2), True, seed=seed).mean()) for seed in range(3)]
    return Outcome(min(each), float(reach((4, 2), False).mean()), each, {"scale": "64 tokens, width 8"})


def without_it_nothing_does(lab: Laboratory) -> Outcome:
    """The largest deviation from 1 / G of the same share, with G groups in both passes and no permutation: G = 2, 4, 8."""
    del lab
    found = {G: float(reach((G, G), False).mean()) for G in (2, 4, 8)}
    return Outcome(
        max(abs(share - 1 / G) for G, share in found.items()), None, [], {str(G): x for G, x in found.items()}
    )

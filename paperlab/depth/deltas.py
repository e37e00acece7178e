"""What makes one application of a shared layer differ from the next: low-rank changes of its weights, as trees.

    LoRA    W + s A B              A [in, r], B [r, out], one pair an application
    DoRA    m (W + s A B) / |W + s A B|        |.|, m: by column

Both are tree -> tree functions: what they return goes into the layer's own `apply`. All leading axes are batch: stacked layers
or applications.

Sources: LoRA (arXiv 2106.09685), DoRA (2402.09353), Relaxed Recursive Transformers (2410.20672, section 3.3).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_map_with_path

Tree = Any
Lora = dict[str, dict[str, Array]]
TARGETS = r"/kernel$"


def name_of(path: Any) -> str:
    """`mixer/q/kernel`, the name of a leaf."""
    return keystr(path, simple=True, separator="/")


def targets(params: Tree, pattern: str = TARGETS) -> dict[str, Array]:
    """The matrices [..., in, out] whose names the pattern finds."""
    found: dict[str, Array] = {}

    def look(path: Any, leaf: Any) -> Any:
        if re.search(pattern, "/" + name_of(path)) and leaf.ndim >= 2:
            found[name_of(path)] = leaf
        return leaf

    tree_map_with_path(look, params)
    return found


def zero_lora(key: Array, params: Tree, rank: int, *, pattern: str = TARGETS, lead: tuple[int, ...] = ()) -> Lora:
    """A drawn from N(0, 1 / in), B = 0: changes nothing yet, and A B has a gradient. The rank is cut to min(in, out).

    Args:
      params: of one layer, or their shapes.
      lead: leading axes of what is made, such as the number of applications.
    """
    found = targets(params, pattern)
    keys = jax.random.split(key, max(len(found), 1))
    made = {}
    for k, (name, W) in zip(keys, sorted(found.items()), strict=False):
        (fan_in, out), r = W.shape[-2:], min(rank, *W.shape[-2:])
        a = jax.random.normal(k, (*lead, fan_in, r)) * fan_in**-0.5
        made[name] = {"a": a, "b": jnp.zeros((*lead, r, out))}
    return made


def add_lora(params: Tree, lora: Mapping[str, Mapping[str, Array]], scale: float = 1.0) -> Tree:
    """The weights with scale A B added, in their own dtype; with "m" beside A and B by DoRA's rule."""

    def changed(path: Any, W: Array) -> Array:
        delta = lora.get(name_of(path))
        if delta is None:
            return W
        new = W + scale * jnp.matmul(delta["a"], delta["b"]).astype(W.dtype)
        if "m" in delta:
            new = delta["m"][..., None, :].astype(W.dtype) * new / jnp.linalg.norm(new, axis=-2, keepdims=True)
        return new

    return tree_map_with_path(changed, params)


def with_magnitudes(params: Tree, lora: Lora, scale: float = 1.0) -> Lora:
    """LoRA turned into DoRA that computes the same: m is the length of every column as it is."""
    found = targets(add_lora(params, lora, scale), TARGETS)
    return {name: {**pair, "m": jnp.linalg.norm(found[name], axis=-2)} for name, pair in lora.items()}


def svd_lora(residual: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(A [..., in, r], B [..., r, out]) of the best approximation of a residual [..., in, out], computed in float64."""
    U, S, Vt = np.linalg.svd(np.asarray(residual, np.float64), full_matrices=False)
    r = min(rank, S.shape[-1])
    return U[..., :r], S[..., :r, None] * Vt[..., :r, :]

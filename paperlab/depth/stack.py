"""The plain stack: every layer once, in order, under lax.scan over the stacked weights.

    x_{l+1} = f_{kind(l)}(theta_l, x_l),   kind(l) = pattern[l mod period]

Whole periods are scanned; what is left of a last one is unrolled.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def scan_pattern(
    layer: Callable[..., tuple[Array, Any]],
    pattern: tuple[str, ...],
    depth: int,
    x: Array,
    per_layer: Mapping[str, tuple[Any, Any]],
    keys: Array | None,
    remat: Callable[[Any], Any],
    unroll: int = 1,
) -> tuple[Array, dict[str, Any]]:
    """Applies `layer(kind, params, x, state, key) -> (x, out)` along a repeated pattern of kinds.

    Args:
      layer: one layer; its `out` is any pytree of arrays (or None).
      pattern: kinds of the layers of one period.
      depth: number of layers; the last period may be cut short.
      x: what runs through the layers.
      per_layer: {kind: (params, states)}, stacked in the order in which the kind occurs.
      keys: one key a layer, or None.
      remat: wraps the function of one period (jax.checkpoint, or nothing).
      unroll: periods written out one after another in each turn of the loop.

    Returns:
      x after the last layer, and {kind: outs}, stacked like the params.
    """

    def segment(kinds, x, inputs):
        stacks, keys = inputs
        outs: dict[str, list] = {kind: [] for kind in kinds}
        for i, kind in enumerate(kinds):
            params, state = jax.tree.map(lambda a, n=len(outs[kind]): a[n], stacks[kind])
            x, out = layer(kind, params, x, state, None if keys is None else keys[i])
            outs[kind].append(out)
        return x, {kind: jax.tree.map(lambda *a: jnp.stack(a), *found) for kind, found in outs.items()}

    def part(n_periods, kinds, start):
        """Inputs of `segment`: those of n_periods whole periods, or of the layers after `start` periods."""
        counts, period = Counter(kinds), Counter(pattern)

        def cut(a, offset, count):
            a = a[offset : offset + count * max(n_periods, 1)]
            return a.reshape(n_periods, count, *a.shape[1:]) if n_periods else a

        stacks = {
            kind: jax.tree.map(lambda a, k=kind, c=count: cut(a, start * period[k], c), per_layer[kind])
            for kind, count in counts.items()
        }
        return stacks, None if keys is None else cut(keys, start * len(pattern), len(kinds))

    periods, rest = divmod(depth, len(pattern))
    parts = []
    if periods:
        body = remat(lambda x, inputs: segment(pattern, x, inputs))
        x, out = jax.lax.scan(body, x, part(periods, pattern, 0), unroll=min(unroll, periods))
        parts.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out))
    if rest:
        body = remat(lambda x, inputs: segment(pattern[:rest], x, inputs))
        x, out = body(x, part(0, pattern[:rest], periods))
        parts.append(out)
    kinds = dict.fromkeys(kind for out in parts for kind in out)
    merged = {kind: [out[kind] for out in parts if kind in out] for kind in kinds}
    return x, {kind: jax.tree.map(lambda *a: jnp.concatenate(a), *found) for kind, found in merged.items()}

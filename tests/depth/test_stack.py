"""The plain stack equals a Python loop over its layers, for every pattern, whole or cut short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.depth.stack import scan_pattern


def layer(kind, params, x, state, key):
    x = jnp.sin(params["w"] * x + (state if state is not None else 0.0) + (1.0 if kind == "b" else 0.0))
    return x, {"state": x + params["w"], "noise": None if key is None else jax.random.uniform(key)}


@pytest.mark.parametrize(("pattern", "depth"), [("a", 3), ("ab", 4), ("aab", 7), ("aab", 2), ("abb", 5), ("b", 1)])
@pytest.mark.parametrize(("with_state", "unroll"), [(True, 1), (False, 2)])
def test_equals_a_loop(pattern, depth, with_state, unroll):
    kinds = [pattern[i % len(pattern)] for i in range(depth)]
    counts = {kind: kinds.count(kind) for kind in kinds}
    per_layer = {
        kind: ({"w": jnp.arange(1.0, n + 1) * ord(kind)}, jnp.arange(float(n)) if with_state else None)
        for kind, n in counts.items()
    }
    keys = jax.random.split(jax.random.key(0), depth)
    got, outs = scan_pattern(layer, tuple(pattern), depth, jnp.float32(0.5), per_layer, keys, jax.checkpoint, unroll)
    x, seen, want = jnp.float32(0.5), dict.fromkeys(counts, 0), {kind: [] for kind in counts}
    for kind, key in zip(kinds, keys, strict=True):
        params, state = jax.tree.map(lambda a, i=seen[kind]: a[i], per_layer[kind])
        x, out = layer(kind, params, x, state, key)
        want[kind].append(out)
        seen[kind] += 1
    np.testing.assert_allclose(got, x, rtol=1e-6)
    stacked = {kind: jax.tree.map(lambda *a: jnp.stack(a), *found) for kind, found in want.items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), outs, stacked)


def test_whole_periods_are_one_scan():
    per_layer = {"a": ({"w": jnp.ones(8)}, None), "b": ({"w": jnp.ones(4)}, None)}

    def run(per_layer):
        return scan_pattern(layer, ("a", "a", "b"), 12, jnp.float32(0.5), per_layer, None, lambda body: body)[0]

    text = str(jax.make_jaxpr(run)(per_layer))
    assert text.count("scan[") == 1
    assert text.count("sin") == 3

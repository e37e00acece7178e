"""What the graph classifiers of this paper share around their layers: an encoding of degrees, pooling, and the decoder."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.linear import linear
from paperlab.layers.norms import at_least_float32


def degree_encoding(degree: Array, width: int) -> Array:
    """[..., width] sinusoids of the number of neighbours, as of a position (Vaswani et al. 2017)."""
    half = -(-width // 2)
    angle = degree[..., None] * np.float32(10_000) ** (-np.arange(half, dtype=np.float32) / half)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)[..., :width]


def _sum(x: Array, graph: Array, graphs: int) -> Array:
    return jax.vmap(lambda x, g: jax.ops.segment_sum(x, g, num_segments=graphs))(at_least_float32(x), graph)


def _mean(x: Array, graph: Array, graphs: int) -> Array:
    count = _sum(jnp.ones((*graph.shape, 1)), graph, graphs)
    return _sum(x, graph, graphs) / jnp.maximum(count, 1)


def _max(x: Array, graph: Array, graphs: int) -> Array:
    found = jax.vmap(lambda x, g: jax.ops.segment_max(x, g, num_segments=graphs))(at_least_float32(x), graph)
    return jnp.where(jnp.isfinite(found), found, 0)  # a place without a graph


# x [R, N, D], graph [R, N] -> [R, graphs, D] in float32; nodes of no graph say `graphs`.
POOLINGS: dict[str, Callable[[Array, Array, int], Array]] = {"mean": _mean, "sum": _sum, "max": _max}


class Decoder(nn.Module):
    """Two layers, from a pooled graph to logits in float32."""

    width: int
    classes: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.hidden = linear(self.width, bias=True, dtype=self.dtype, std=self.width**-0.5)
        self.logits = linear(self.classes, bias=True, dtype=self.dtype, std=0.02)

    def __call__(self, pooled: Array) -> Array:
        return at_least_float32(self.logits(jax.nn.gelu(self.hidden(pooled.astype(self.dtype)))))

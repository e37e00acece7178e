"""Graph neural networks that pLSTM is compared with: rounds of messages between neighbours, then pooling and a decoder.

    gin    x_i <- MLP((1 + eps) x_i + sum_j relu(x_j + W e_ij))                        Xu et al. 2019 (edges: Hu et al. 2020)
    gcn    x_i <- W (x_i / (d_i + 1) + sum_j x_j / sqrt((d_i + 1)(d_j + 1)))           Kipf and Welling 2017
    gat    x_i <- sum_j softmax_j(a . leaky(W_l x_i + W_r x_j + W_e e_ij)) W_r x_j     Brody et al. 2022 (GATv2), i among its j
    mpnn   x_i <- GRU(sum_j MLP(x_i, x_j, e_ij), x_i)                                  Gilmer et al. 2017, messages of an MLP
    lstm   x_i, c_i <- LSTM(sum_j W (x_j, e_ij); x_i, c_i)                             the same with an LSTM's state in every node

j runs over the neighbours of i, both ways along an edge. gin, gcn and gat add their x to what comes in, behind a layer norm that
stands for the batch norm of the originals, so that a graph's answer does not depend on its batch.
Baselines of arXiv 2506.11997, section 7.3: width 128, 4 or 8 layers, sum pooling.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.data.graphs import Features
from paperlab.errors import ConfigError
from paperlab.layers.linear import linear
from paperlab.layers.norms import LayerNorm, at_least_float32
from paperlab.limits import at_least, hold, one_of, share
from paperlab.papers.plstm.graph_pooling import POOLINGS, Decoder, degree_encoding
from paperlab.recurrence.dag_blocks import taken

KINDS = ("gin", "gcn", "gat", "mpnn", "lstm")
DEFAULTS = {
    "kind": "gin",
    "width": 128,
    "depth": 4,
    "heads": 4,  # of gat
    "degree_encoding": False,
    "pooling": "sum",
    "dropout": 0.0,
    "dtype": "float32",
}
LIMITS = {
    "kind": one_of(*KINDS),
    "width": at_least(1),
    "depth": at_least(1),
    "heads": at_least(1),
    "pooling": one_of(*POOLINGS),
    "dropout": share(below=True),
    "dtype": one_of("float32", "bfloat16"),
}


class Round(nn.Module):
    """One round of messages. (x, carry) [R, N, width] -> the same; carry is what an LSTM remembers."""

    kind: str
    width: int
    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, carry: Array, degree: Array, beside: Array | None, ends: tuple[Array, Array]) -> Any:
        senders, receivers = ends
        sent, own = jax.vmap(taken)(x, senders), jax.vmap(taken)(x, receivers)
        gathered = _sum_at(receivers, x.shape[1])

        def dense(features: int, bias: bool = True) -> nn.Module:
            return linear(features, bias=bias, dtype=self.dtype, std=self.width**-0.5)

        def with_edges(parts: list[Array]) -> Array:
            return jnp.concatenate(parts if beside is None else [*parts, beside], -1)

        if self.kind == "gin":
            message = nn.relu(sent if beside is None else sent + dense(self.width, bias=False)(beside))
            eps = self.param("eps", nn.initializers.zeros, (), jnp.float32)
            together = (1 + eps).astype(x.dtype) * x + gathered(message)
            return dense(self.width)(nn.relu(dense(2 * self.width)(together))), carry
        if self.kind == "gcn":
            share = (jax.lax.rsqrt(degree + 1.0)[..., None]).astype(x.dtype)
            at = jax.vmap(taken)(share, senders) * jax.vmap(taken)(share, receivers)
            return dense(self.width)(share**2 * x + gathered(at * sent)), carry
        if self.kind == "gat":
            return self._attention(x, sent, own, beside, receivers, dense), carry
        if self.kind == "mpnn":
            message = gathered(dense(self.width)(nn.relu(dense(self.width)(with_edges([own, sent])))))
            return nn.GRUCell(self.width, dtype=self.dtype)(x, message)[0], carry
        message = gathered(dense(self.width)(with_edges([sent])))
        (carry, x), _ = nn.LSTMCell(self.width, dtype=self.dtype)((carry, x), message)
        return x, carry

    def _attention(self, x: Array, sent: Array, own: Array, beside: Any, receivers: Array, dense: Any) -> Array:
        """Every node attends to its neighbours and to itself."""
        H, N = self.heads, x.shape[1]
        left, right = dense(self.width), dense(self.width, bias=False)
        vector = self.param("vector", nn.initializers.normal(0.1), (H, self.width // H), jnp.float32)

        def score(y: Array) -> Array:
            return (at_least_float32(nn.leaky_relu(y, 0.2)).reshape(*y.shape[:-1], H, -1) * vector).sum(-1)

        mixed = left(own) + right(sent)
        across = score(mixed if beside is None else mixed + dense(self.width, bias=False)(beside))
        itself = score(left(x) + right(x))
        largest = jax.vmap(lambda s, r: jax.ops.segment_max(s, r, num_segments=N))(across, receivers)
        largest = jax.lax.stop_gradient(jnp.maximum(largest, itself))
        across = jnp.exp(across - jax.vmap(taken)(largest, receivers))
        itself = jnp.exp(itself - largest)
        values = [at_least_float32(right(y)).reshape(*y.shape[:-1], H, -1) for y in (sent, x)]
        together = _sum_at(receivers, N)(across[..., None] * values[0]) + itself[..., None] * values[1]
        total = _sum_at(receivers, N)(across) + itself
        return (together / total[..., None]).reshape(x.shape).astype(x.dtype)


def _sum_at(receivers: Array, nodes: int) -> Any:
    """Messages [R, 2 E, ...] -> what each node gets, [R, N, ...]; padding is dropped."""
    return lambda m: jax.vmap(lambda m, r: jax.ops.segment_sum(m, r, num_segments=nodes))(m, receivers)


class GNN(nn.Module):
    """Logits [R, G, classes] of every graph of a batch (`paperlab.data.wiring.union`, rows stacked)."""

    features: Features
    kind: str = "gin"
    width: int = 128
    depth: int = 4
    heads: int = 4
    degree_encoding: bool = False
    pooling: str = "sum"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Array:
        x = linear(self.width, bias=True, dtype=self.dtype, std=self.features.nodes**-0.5)(batch["nodes"])
        if self.degree_encoding:
            x = x + degree_encoding(batch["degree"], self.width).astype(x.dtype)
        ends = [jnp.concatenate([batch[a], batch[b]], 1) for a, b in (("tails", "heads"), ("heads", "tails"))]
        beside = jnp.concatenate([batch["beside"]] * 2, 1) if self.features.edges else None
        carry, between = jnp.zeros_like(x), (ends[0], ends[1])
        for _ in range(self.depth):
            one = Round(self.kind, self.width, self.heads, self.dtype)
            if self.kind in ("mpnn", "lstm"):
                x, carry = one(x, carry, batch["degree"], beside, between)
            else:
                y, carry = one(LayerNorm()(x), carry, batch["degree"], beside, between)
                x = x + nn.relu(y)
            if self.dropout > 0 and self.has_rng("dropout"):
                x = nn.Dropout(self.dropout, deterministic=False)(x)
        pooled = POOLINGS[self.pooling](LayerNorm()(x), batch["graph"], batch["labels"].shape[1])
        return Decoder(self.width, self.features.classes, self.dtype)(pooled)

    @nn.nowrap
    def sharding(self) -> tuple:
        """No rules: the largest dimension of a parameter is what fsdp divides."""
        return ()


def make(config: Any, features: Features) -> GNN:
    """The network that `config.model` describes. Raises ConfigError: see `check`."""
    check(config)
    options = _options(config)
    options["dtype"] = jnp.dtype(options["dtype"])
    return GNN(features, **options)


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    options = _options(config)
    hold(options, LIMITS, "config.model.")
    if options["kind"] == "gat" and options["width"] % options["heads"]:
        raise ConfigError(f"config.model.heads={options['heads']} must divide config.model.width={options['width']}")


def _options(config: Any) -> dict[str, Any]:
    return {**DEFAULTS, **{key: value for key, value in dict(config["model"]).items() if key in DEFAULTS}}

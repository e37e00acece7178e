"""A graph classifier around pLSTM: features -> double blocks of P- and D-mode layers -> pooling -> decoder.

    x = W features + sinusoids(number of neighbours)
    x = x + layer(norm(x));  x = x + MLP(norm(x))          block="post", for P and then D in each double block
    x = x + W_down (layer(W_up norm(x)) * silu(W_gate norm(x)))          block="pre"
    logits = W gelu(W pool(norm(x)))

Edges run from the lower node to the higher. With `directions="alternate"` every second double block runs on the graph turned round;
"forward" never turns. Blocks of one mode lie stacked under `blocks/<mode>`, and lax.scan runs the pattern over them.

Source: pLSTM (arXiv 2506.11997), section 7.3; sizes: specification section 9.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.data.graphs import Features
from paperlab.depth.stack import scan_pattern
from paperlab.errors import ConfigError
from paperlab.layers.linear import linear
from paperlab.layers.mlp import MLP
from paperlab.layers.norms import RMSNorm
from paperlab.layers.sharding import constrain_rows
from paperlab.limits import above, at_least, hold, one_of, share
from paperlab.papers.plstm.graph import GATES, GraphLayer, Wiring
from paperlab.papers.plstm.graph_pooling import POOLINGS, Decoder, degree_encoding
from paperlab.recurrence.dag import IMPLEMENTATIONS, Order, Schedule

DEFAULTS = {
    "width": 96,
    "heads": 4,
    "double_blocks": 2,
    "modes": "PD",  # of the layers of a double block, such as "PD", "DP", "P"
    "directions": "alternate",
    "block": "post",
    "expand": 1.5,  # of the MLP, or of the up-projection
    "gates": "edge",
    "edge_width": 16,
    "gate_bias": -5.0,
    "transition_std": 10.0,
    "transition_diagonal": 10.0,
    "degree_encoding": True,
    "pooling": "mean",
    "dropout": 0.0,
    "norm_eps": 1e-6,
    "impl": "auto",
    "dtype": "float32",
}
LIMITS = {
    "width": at_least(1),
    "heads": at_least(1),
    "double_blocks": at_least(1),
    "directions": one_of("alternate", "forward"),
    "block": one_of("post", "pre"),
    "expand": above(0),
    "gates": one_of(*GATES),
    "edge_width": at_least(1),
    "transition_std": at_least(0),
    "pooling": one_of(*POOLINGS),
    "dropout": share(below=True),
    "norm_eps": above(0),
    "impl": one_of(*IMPLEMENTATIONS),
    "dtype": one_of("float32", "bfloat16"),
}
SHARDING = (
    (r"layer/(q|k|v)/kernel$", ("fsdp", "tensor")),
    (r"(layer/out|down)/kernel$", ("tensor", "fsdp")),
    (r"(up|gate)/kernel$", ("fsdp", "tensor")),
)


class GraphBlock(nn.Module):
    """A layer of one mode and its feed-forward part; `options` are those of `GraphLayer`."""

    width: int
    inner: int
    kind: str
    dropout: float
    norm_eps: float
    dtype: DTypeLike
    options: tuple[tuple[str, Any], ...]

    def setup(self) -> None:
        own = self.width if self.kind == "post" else self.inner
        self.layer = GraphLayer(own, dtype=self.dtype, **dict(self.options))
        self.layer_norm = RMSNorm(self.norm_eps)
        std = (2 / (5 * self.width)) ** 0.5
        if self.kind == "post":
            self.mlp_norm = RMSNorm(self.norm_eps)
            self.mlp = MLP(self.width, self.inner, bias=True, dtype=self.dtype, init_std=std)
        else:
            self.up, self.gate = (linear(self.inner, dtype=self.dtype, std=std) for _ in range(2))
            self.down = linear(self.width, dtype=self.dtype, std=std)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Array, edges: Array | None, wiring: Wiring) -> Array:
        if self.kind == "post":
            x = constrain_rows(x + self._dropped(self.layer(self.layer_norm(x), edges, wiring)))
            return constrain_rows(x + self._dropped(self.mlp(self.mlp_norm(x))))
        y = self.layer_norm(x)
        mixed = self.layer(self.up(y), edges, wiring) * jax.nn.silu(self.gate(y))
        return constrain_rows(x + self._dropped(self.down(mixed)))

    def _dropped(self, x: Array) -> Array:
        return self.drop(x, deterministic=not (self.dropout > 0 and self.has_rng("dropout")))


class GraphModel(nn.Module):
    """Logits of every graph of a batch (`paperlab.data.wiring.union`, rows stacked)."""

    features: Features
    width: int = 96
    heads: int = 4
    double_blocks: int = 2
    modes: str = "PD"
    directions: str = "alternate"
    block: str = "post"
    expand: float = 1.5
    gates: str = "edge"
    edge_width: int = 16
    gate_bias: float = -5.0
    transition_std: float = 10.0
    transition_diagonal: float = 10.0
    degree_encoding: bool = True
    pooling: str = "mean"
    dropout: float = 0.0
    norm_eps: float = 1e-6
    impl: str = "auto"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.encode = linear(self.width, bias=True, dtype=self.dtype, std=self.features.nodes**-0.5)
        if self._edge_width():
            self.encode_edges = linear(self.edge_width, bias=True, dtype=self.dtype, std=self.features.edges**-0.5)
        self.blocks = self.param("blocks", self._init_blocks)
        self.final_norm = RMSNorm(self.norm_eps)
        self.decoder = Decoder(self.width, self.features.classes, self.dtype)

    def __call__(self, batch: dict[str, Array]) -> Array:
        """Logits [R, G, classes], float32."""
        x = self.encode(batch["nodes"])
        if self.degree_encoding:
            x = x + degree_encoding(batch["degree"], self.width).astype(x.dtype)
        edges = self.encode_edges(batch["beside"]) if self._edge_width() else None
        x = self._through_blocks(x, edges, batch)
        pooled = POOLINGS[self.pooling](self.final_norm(x), batch["graph"], batch["labels"].shape[1])
        return self.decoder(pooled)

    def _through_blocks(self, x: Array, edges: Array | None, batch: dict[str, Array]) -> Array:
        ways = {mode: [wiring(batch, mode, turned) for turned in (False, True)] for mode in self.modes}
        both = {mode: jax.tree.map(lambda *a: jnp.stack(a), *pair) for mode, pair in ways.items()}
        depth, keys = self.double_blocks * len(self.modes), None
        if self.dropout > 0 and self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), depth)
        blocks = {mode: self.block_of(mode) for mode in self.modes}

        def layer(mode: str, params: Any, x: Array, turned: Array, key: Array | None) -> tuple[Array, None]:
            rngs = {} if key is None else {"dropout": key}
            here = jax.tree.map(lambda a: a[turned], both[mode])
            y: Any = blocks[mode].apply({"params": params}, x, edges, here, rngs=rngs)
            return y, None

        turned = (
            jnp.arange(self.double_blocks) % 2 if self.directions == "alternate" else jnp.zeros(self.double_blocks, int)
        )
        counts = {mode: self.modes.count(mode) for mode in self.modes}
        per_layer = {mode: (self.blocks[mode], jnp.repeat(turned, count)) for mode, count in counts.items()}
        return scan_pattern(layer, tuple(self.modes), depth, x, per_layer, keys, lambda body: body)[0]

    @nn.nowrap
    def block_of(self, mode: str) -> GraphBlock:
        """One block, detached: `apply({"params": one}, x, edges, wiring)`."""
        names = ("heads", "gates", "gate_bias", "transition_std", "transition_diagonal", "impl")
        options = {name: getattr(self, name) for name in names}
        options |= {"mode": mode, "edge_width": self._edge_width(), "slots": self.features.slots}
        inner = round(self.width * self.expand / self.heads) * self.heads
        fields = (self.width, inner, self.block, self.dropout, self.norm_eps, self.dtype)
        return GraphBlock(*fields, tuple(options.items()), parent=None)

    @nn.nowrap
    def sharding(self) -> tuple[tuple[str, tuple], ...]:
        """Rules for the parameters' paths."""
        return SHARDING

    def _edge_width(self) -> int:
        return self.edge_width if self.features.edges and self.gates == "edge" else 0

    def _init_blocks(self, key: Array) -> dict[str, Any]:
        """{mode: parameters of all its blocks, stacked}."""
        empty = {name: jnp.zeros((1, *shape), jnp.int32) for name, shape in _SMALLEST.items()}
        x = jnp.zeros((1, 2, self.width), self.dtype)
        edges = jnp.zeros((1, 1, self.edge_width), self.dtype) if self._edge_width() else None

        def stack(mode: str, key: Array) -> Any:
            block, count = self.block_of(mode), self.double_blocks * self.modes.count(mode)
            init = partial(block.init, x=x, edges=edges, wiring=wiring(empty, mode, False))
            return jax.vmap(lambda k: init(k)["params"])(jax.random.split(key, count))

        modes = dict.fromkeys(self.modes)
        return {mode: stack(mode, k) for mode, k in zip(modes, jax.random.split(key, len(modes)), strict=True)}


_SMALLEST = {
    **dict.fromkeys(("tails", "heads", "exits", "entries"), (1,)),
    "arcs": (3, 1, 2),
    **dict.fromkeys(("order_edges", "order_into", "order_from", "order_arc"), (3, 2, 1, 1)),
}


def wiring(batch: dict[str, Array], mode: str, turned: bool) -> Wiring:
    """The part of a batch that a layer of this mode and direction needs: P all arcs, D those of a multitree."""
    kind = 0 if mode == "P" else 1 + turned
    orders = [
        Order(*(batch[f"order_{name}"][:, kind, way] for name in ("edges", "into", "from", "arc"))) for way in range(2)
    ]
    arcs = batch["arcs"][:, kind]
    tails, heads, exits, entries = (batch[name] for name in ("tails", "heads", "exits", "entries"))
    if turned:
        tails, heads, exits, entries = heads, tails, entries, exits
    if turned and mode == "P":  # its arcs are stored once, as they run forward
        orders, arcs = orders[::-1], arcs[..., ::-1]
    return Wiring(tails, heads, exits, entries, arcs, Schedule(*orders))


def make(config: Any, features: Features) -> GraphModel:
    """The model that `config.model` describes, for graphs of these features.

    Raises:
      ConfigError: see `check`.
    """
    check(config)
    options = _options(config)
    options["dtype"] = jnp.dtype(options["dtype"])
    return GraphModel(features, **options)


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    options = _options(config)
    hold(options, LIMITS, "config.model.")
    modes = options["modes"]
    if not modes or set(modes) - {"P", "D"}:
        raise ConfigError(f'config.model.modes={modes!r}: say the layers of a double block, such as "PD", "D" or "PPD"')
    if options["width"] % options["heads"]:
        raise ConfigError(f"config.model.heads={options['heads']} must divide config.model.width={options['width']}")


def _options(config: Any) -> dict[str, Any]:
    return {**DEFAULTS, **{key: value for key, value in dict(config["model"]).items() if key in DEFAULTS}}

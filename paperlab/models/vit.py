"""The vision transformer, and the frame that it shares with other models of images.

    z_0 = patches of the image + positions,   z_{l+1} = Block_l(z_l),   logits = pool(norm(z_L)) W + b

Block: ResidualBlock of paperlab.layers.residual, here around self-attention of all tokens with one another. Images [B, X, Y, C] of
any size that `patch` divides; grids of tokens are images with `patch` 1. The table of positions has the size of the images that
`init` saw, and is resized bicubically to others.

Sources: ViT, arXiv 2010.11929, section 3.1; LayerScale and one rate of stochastic depth for all layers: DeiT III, arXiv 2204.07118.
"""

from functools import partial
from math import prod
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from paperlab.depth.stack import scan_pattern
from paperlab.errors import ConfigError
from paperlab.layers.activations import ACTIVATIONS
from paperlab.layers.linear import linear
from paperlab.layers.norms import NORMS
from paperlab.layers.patches import POOLINGS, PatchEmbedding, PositionEmbedding, pool
from paperlab.layers.residual import ResidualBlock
from paperlab.layers.sharding import constrain_rows
from paperlab.limits import above, at_least, hold, one_of, share
from paperlab.models.lm import REMAT

FRAME = {
    "patch": 16,
    "width": 192,
    "depth": 12,
    "heads": 3,
    "position": "learned",
    "pooling": "cls",
    "norm": "layer",
    "norm_eps": 1e-6,
    "ffn_ratio": 4.0,
    "ffn_multiple": 64,
    "ffn_gated": False,
    "activation": "gelu_erf",
    "bias": True,
    "layer_scale": 0.0,
    "drop_path": 0.0,
    "drop_path_linear": False,
    "init_std": 0.02,
    "head_init_std": 0.02,
    "remat": "none",
    "unroll": 1,
    "dtype": "float32",
}
DEFAULTS = {**FRAME, "attention_impl": "xla"}

LIMITS = {
    "patch": at_least(1, "pixels; 1: the images are grids of tokens"),
    "width": at_least(1),
    "depth": at_least(1, "layers"),
    "heads": at_least(1),
    "position": one_of("learned", "none"),
    "pooling": one_of("cls", *POOLINGS),
    "norm": one_of(*NORMS),
    "norm_eps": above(0),
    "ffn_ratio": above(0),
    "ffn_multiple": at_least(1),
    "activation": one_of(*ACTIVATIONS),
    "layer_scale": at_least(0, "what the scales start at; 0: none"),
    "drop_path": share(below=True),
    "init_std": at_least(0),
    "head_init_std": at_least(0),
    "remat": one_of(*REMAT),
    "unroll": at_least(1, "periods of layers in a turn of the loop"),
    "dtype": one_of("float32", "bfloat16", "float16", "float64"),
    "attention_impl": one_of("xla", "cudnn", note="cudnn: a GPU, half precision"),
}

SHARDING = (
    (r"patch/kernel$", ("fsdp", "tensor")),
    (r"head/kernel$", ("fsdp", "tensor")),
    (r"ffn/(up|gate)/kernel$", ("fsdp", "tensor")),
    (r"ffn/down/kernel$", ("tensor", "fsdp")),
    (r"mixer/(q|k|v)/kernel$", ("fsdp", "tensor")),
    (r"mixer/out/kernel$", ("tensor", "fsdp")),
)


class ImageModel(nn.Module):
    """Patches, positions, a stack of blocks, pooling and a head; the fields are those of `FRAME`.

    A model says its layers in `pattern` and `block`, and, if these take no grids, how a grid becomes their input (`enter`) and
    their output one vector an image (`read_out`). Layers of one kind lie stacked under `blocks/<kind>`; lax.scan runs the pattern.
    """

    classes: int
    patch: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    position: str = "learned"
    pooling: str = "mean"
    norm: str = "rms"
    norm_eps: float = 1e-5
    ffn_ratio: float = 4.0
    ffn_multiple: int = 64
    ffn_gated: bool = False
    activation: str = "gelu_erf"
    bias: bool = True
    layer_scale: float = 0.0
    drop_path: float = 0.0
    drop_path_linear: bool = False
    init_std: float = 0.02
    head_init_std: float = 0.02
    remat: str = "none"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.patches = PatchEmbedding(self.patch, self.width, self.dtype, self.init_std, name="patch")
        if self.position == "learned":
            self.positions = PositionEmbedding(self.init_std, name="position")
        if self.pooling == "cls":
            init = nn.initializers.normal(self.init_std)
            self.class_token = self.param("class_token", init, (self.width,), jnp.float32)
        self.blocks = self.param("blocks", self._init_blocks)
        self.final_norm = NORMS[self.norm](self.norm_eps)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        self.head = linear(self.classes, bias=True, dtype=wide, std=self.head_init_std)

    def __call__(self, x_BxXxYxC: Array) -> Array:
        """Logits [B, classes] in float32 (float64). Stochastic depth acts where an rng "dropout" is given."""
        grid = self.embed(x_BxXxYxC)
        return self.head(self.read_out(self.final_norm(self.run(self.enter(grid))), grid.shape))

    def embed(self, x_BxXxYxC: Array) -> Array:
        """Patches with their positions, [B, X / patch, Y / patch, width]."""
        grid = self.patches(x_BxXxYxC)
        return constrain_rows(self.positions(grid) if self.position == "learned" else grid)

    def features(self, x_BxXxYxC: Array) -> Array:
        """The normalised output of the last block, before pooling, as the blocks have it."""
        return self.final_norm(self.run(self.enter(self.embed(x_BxXxYxC))))

    def enter(self, grid: Array) -> Array:
        """What the first block takes."""
        return grid

    def read_out(self, x: Array, shape: tuple[int, ...]) -> Array:
        """One vector an image, of what the last block gives for a grid of this shape."""
        return pool(x, self.pooling)

    def run(self, x: Array) -> Array:
        """All blocks in order."""
        keys = None
        if self.drop_path > 0 and self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), self.depth)
        sown = ["intermediates"] if self.is_mutable_collection("intermediates") else []
        blocks = {kind: self.block(kind) for kind in self.layer_kinds()}

        def layer(kind: str, params: Any, x: Array, rate: Array, key: Array | None) -> tuple[Array, Any]:
            rngs = None if key is None else {"dropout": key}
            return blocks[kind].apply({"params": params}, x, rate, rngs=rngs, mutable=sown)

        kinds = np.array(self.layer_kinds())
        rates = self.drop_rates()
        per_layer = {kind: (self.blocks[kind], jnp.asarray(rates[kinds == kind], jnp.float32)) for kind in blocks}
        x, out = scan_pattern(layer, self.pattern(), self.depth, x, per_layer, keys, REMAT[self.remat], self.unroll)
        for kind in blocks:
            if "intermediates" in out[kind] and not self.is_initializing():
                self.sow("intermediates", kind, out[kind]["intermediates"])
        return x

    @nn.nowrap
    def pattern(self) -> tuple[str, ...]:
        """Kinds of the layers of one period."""
        return ("block",)

    @nn.nowrap
    def block(self, kind: str) -> nn.Module:
        """One layer, detached: `block.apply({"params": layer}, x, rate)` keeps the shape of x."""
        raise TypeError(f"{type(self).__name__} does not say what a layer of kind {kind!r} is")

    @nn.nowrap
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of every layer, from the first to the last."""
        pattern = self.pattern()
        return tuple(pattern[i % len(pattern)] for i in range(self.depth))

    @nn.nowrap
    def drop_rates(self) -> np.ndarray:
        """Rate of stochastic depth of every layer: one for all, or rising linearly from 0."""
        if not self.drop_path_linear:
            return np.full(self.depth, self.drop_path)
        return np.linspace(0, self.drop_path, self.depth)

    @nn.nowrap
    def ffn_width(self) -> int:
        """ffn_ratio times the width, rounded up to a multiple."""
        return -(-round(self.ffn_ratio * self.width) // self.ffn_multiple) * self.ffn_multiple

    @nn.nowrap
    def sharding(self) -> tuple[tuple[str, tuple], ...]:
        """Rules for every parameter."""
        return SHARDING

    @nn.nowrap
    def forward_flops(self, params: Any, shape: tuple[int, ...]) -> float:
        """Of a batch of images [B, X, Y, C]: two for each parameter and token, and what tokens do with one another."""
        own = dict(params["params"])
        head = sum(prod(a.shape) for a in jax.tree.leaves(own.pop("head")))
        for name in ("position", "class_token"):
            own.pop(name, None)
        tokens = (shape[1] // self.patch) * (shape[2] // self.patch)
        each = sum(prod(a.shape) for a in jax.tree.leaves(own))
        return 2.0 * shape[0] * (tokens * each + head) + shape[0] * self.depth * 4.0 * tokens**2 * self.width

    def _init_blocks(self, key: Array) -> dict[str, Any]:
        """{kind: parameters of all its layers, stacked on a leading axis}."""
        kinds = self.layer_kinds()
        x = self._sample()

        def stack(kind: str, key: Array) -> Any:
            init = self.block(kind).init
            return jax.vmap(lambda k: init(k, x)["params"])(jax.random.split(key, kinds.count(kind)))

        unique = list(dict.fromkeys(kinds))
        return {kind: stack(kind, k) for kind, k in zip(unique, jax.random.split(key, len(unique)), strict=True)}

    @nn.nowrap
    def _sample(self) -> Array:
        """The smallest input of a block."""
        return jnp.zeros((1, 2, 2, self.width), self.dtype)


class SelfAttention(nn.Module):
    """Softmax attention of all tokens x [B, N, width] with one another."""

    width: int
    heads: int
    bias: bool = True
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02
    impl: Literal["xla", "cudnn"] = "xla"

    def setup(self) -> None:
        dense = partial(linear, self.width, bias=self.bias, dtype=self.dtype, std=self.init_std)
        self.q, self.k, self.v, self.out = dense(), dense(), dense(), dense()

    def __call__(self, x: Array) -> Array:
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.q, self.k, self.v))
        y = jax.nn.dot_product_attention(q, k, v, implementation=self.impl)
        return self.out(y.reshape(x.shape))


class VisionTransformer(ImageModel):
    """Every layer is self-attention; pooling "cls" reads a token that stands before the others."""

    attention_impl: Literal["xla", "cudnn"] = "xla"

    def enter(self, grid: Array) -> Array:
        B, X, Y, D = grid.shape
        tokens = grid.reshape(B, X * Y, D)
        if self.pooling != "cls":
            return tokens
        return jnp.concatenate([jnp.broadcast_to(self.class_token.astype(grid.dtype), (B, 1, D)), tokens], 1)

    def read_out(self, x: Array, shape: tuple[int, ...]) -> Array:
        return x[:, 0] if self.pooling == "cls" else pool(x.reshape(shape), self.pooling)

    @nn.nowrap
    def pattern(self) -> tuple[str, ...]:
        return ("attention",)

    @nn.nowrap
    def block(self, kind: str) -> ResidualBlock:
        mixer = SelfAttention(
            self.width, self.heads, self.bias, self.dtype, self.init_std, self.attention_impl, parent=None
        )
        return residual_block(self, mixer)

    @nn.nowrap
    def _sample(self) -> Array:
        return jnp.zeros((1, 4, self.width), self.dtype)


def residual_block(model: ImageModel, mixer: nn.Module) -> ResidualBlock:
    """The block that the fields of a model describe, around `mixer`."""
    same = ("width", "norm", "norm_eps", "activation", "bias", "layer_scale", "dtype", "init_std")
    options = {name: getattr(model, name) for name in same}
    return ResidualBlock(mixer, ffn_width=model.ffn_width(), gated=model.ffn_gated, parent=None, **options)


def make(config: Any, classes: int) -> VisionTransformer:
    """The model of `config.model` (keys of DEFAULTS) for this number of classes. Raises ConfigError, see `check`."""
    check(config)
    return VisionTransformer(classes, **options_of(config, DEFAULTS))


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    check_frame(options_of(config, DEFAULTS), LIMITS)


def options_of(config: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model: those of `defaults` with what `config.model` says; the dtype as one."""
    section = dict(config["model"])
    options = {name: section.get(name, value) for name, value in defaults.items()}
    hold({"dtype": options["dtype"]}, LIMITS, "config.model.")
    return {**options, "dtype": jnp.dtype(options["dtype"])}


def check_frame(options: dict[str, Any], limits: dict[str, Any]) -> None:
    """Raises ConfigError for fields of an image model out of range, heads that do not divide, float64 without 64-bit mode."""
    hold({name: value for name, value in options.items() if name != "dtype"}, limits, "config.model.")
    width, heads = options["width"], options["heads"]
    if width % heads:
        raise ConfigError(f"config.model.heads={heads} must divide config.model.width={width}: change one of them")
    if options["dtype"] == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("config.model.dtype='float64': jax computes in float32 unless JAX_ENABLE_X64=1 is set")

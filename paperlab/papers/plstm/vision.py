"""pLSTM for images, the model (arXiv 2506.11997, appendix B): patches, P and D layers in turn, the four corners read out.

    z_0 = patches of the image (+ positions),   z_{l+1} = Block_l(z_l),   logits = pool(norm(z_L)) W + b
    block "post_up"  x + layer(norm x), then x + MLP(norm x)
    block "pre_up"   x + W_down (layer(x_1) * silu(x_2)),   (x_1, x_2) = W_up norm x

Frame, sizes and parameters that lie stacked: paperlab.models.vit. Nothing in it depends on the size of the grid: a network runs on
larger images than it was trained on, the position table, where there is one, resized. Pooling "cls": a row of learned tokens
stands below the grid (x = X), and its last one is read, to which direction 0 brings the whole image.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.linear import linear
from paperlab.layers.norms import NORMS
from paperlab.layers.patches import pool
from paperlab.layers.residual import LayerScale, drop_path
from paperlab.layers.sharding import constrain_rows
from paperlab.limits import one_of
from paperlab.models import vit
from paperlab.papers.plstm import layer2d
from paperlab.papers.plstm.layer2d import Layer2D

BLOCKS = ("post_up", "pre_up")
DEFAULTS = {
    **vit.FRAME,
    "pooling": "corners",
    "norm": "rms",
    "norm_eps": 1e-5,
    "layers": "PD",
    "block": "post_up",
    "up_ratio": 2.0,
    **layer2d.OPTIONS,
}
LIMITS = {
    **vit.LIMITS,
    **layer2d.LIMITS,
    "block": one_of(*BLOCKS),
    "up_ratio": vit.LIMITS["ffn_ratio"],
}
SHARDING = (
    (r"(up|gate)/kernel$", ("fsdp", "tensor")),
    (r"down/kernel$", ("tensor", "fsdp")),
    (r"(mixer|layer)/(q|k|v)/kernel$", (None, "fsdp", "tensor")),
    (r"mixer/out/kernel$", (None, "tensor", "fsdp")),
)


class PreUpBlock(nn.Module):
    """x + drop(s * W_down (layer(x_1) * silu(x_2))), (x_1, x_2) = W_up norm(x); `layer` keeps `inner` channels."""

    layer: nn.Module
    width: int
    inner: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    bias: bool = True
    layer_scale: float = 0.0
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02

    def setup(self) -> None:
        self.pre_norm = NORMS[self.norm](self.norm_eps)
        self.up, self.gate, self.down = (
            linear(n, bias=self.bias, dtype=self.dtype, std=self.init_std) for n in (self.inner, self.inner, self.width)
        )
        if self.layer_scale:
            self.scale = LayerScale(self.layer_scale)

    def __call__(self, x: Array, rate: Array | float = 0.0) -> Array:
        h = self.pre_norm(x)
        y = self.down(self.layer(self.up(h)) * jax.nn.silu(self.gate(h)))
        y = self.scale(y) if self.layer_scale else y
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        return constrain_rows(x + drop_path(y, rate, key))


class PlstmVision(vit.ImageModel):
    """The fields of `ImageModel`; `layers`: modes of one period; `block`, `up_ratio`; `options`: those of `Layer2D`."""

    layers: str = "PD"
    layer_options: tuple[tuple[str, Any], ...] = ()
    block_type: str = "post_up"
    up_ratio: float = 2.0

    def enter(self, grid: Array) -> Array:
        if self.pooling != "cls":
            return grid
        B, _, Y, D = grid.shape
        row = jnp.broadcast_to(self.class_token.astype(grid.dtype), (B, 1, Y, D))
        return jnp.concatenate([grid, row], 1)

    def read_out(self, x: Array, shape: tuple[int, ...]) -> Array:
        return x[:, -1, -1] if self.pooling == "cls" else pool(x, self.pooling)

    @nn.nowrap
    def pattern(self) -> tuple[str, ...]:
        return tuple(self.layers)

    @nn.nowrap
    def layer(self, mode: str) -> Layer2D:
        """One pLSTM layer of that mode, detached."""
        options = dict(self.layer_options)
        if self.block_type == "pre_up":
            return Layer2D(
                self.inner_width(), self.heads, mode, project=False, dtype=self.dtype, parent=None, **options
            )
        return Layer2D(self.width, self.heads, mode, dtype=self.dtype, parent=None, **options)

    @nn.nowrap
    def inner_width(self) -> int:
        """up_ratio times the width, rounded up to `ffn_multiple`."""
        return -(-round(self.up_ratio * self.width) // self.ffn_multiple) * self.ffn_multiple

    @nn.nowrap
    def block(self, kind: str) -> nn.Module:
        if self.block_type == "post_up":
            return vit.residual_block(self, self.layer(kind))
        same = ("width", "norm", "norm_eps", "bias", "layer_scale", "dtype", "init_std")
        options = {name: getattr(self, name) for name in same}
        return PreUpBlock(self.layer(kind), inner=self.inner_width(), parent=None, **options)

    @nn.nowrap
    def sharding(self) -> tuple[tuple[str, tuple], ...]:
        return (*vit.SHARDING[:2], *SHARDING)


def make(config: Any, classes: int) -> PlstmVision:
    """The model of `config.model` (keys of DEFAULTS) for this number of classes. Raises ConfigError, see `check`."""
    check(config)
    return _model(config, classes)


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    options = vit.options_of(config, DEFAULTS)
    vit.check_frame(options, LIMITS)
    if not options["layers"] or set(options["layers"]) - set(layer2d.MODES):
        raise ConfigError(
            f"config.model.layers={options['layers']!r}: write the modes of one period, such as 'PD' or 'P'"
        )
    model = _model(config, 1)
    for mode in dict.fromkeys(options["layers"]):
        model.layer(mode).check()
    if options["block"] == "pre_up" and options["JO"] != options["JV"]:
        raise ConfigError(
            f"config.model.JO={options['JO']}: without an out-projection (block='pre_up') it must equal JV={options['JV']}"
        )


def _model(config: Any, classes: int) -> PlstmVision:
    options = vit.options_of(config, DEFAULTS)
    frame = {name: options[name] for name in vit.FRAME}
    layer = tuple((name, options[name]) for name in layer2d.OPTIONS)
    return PlstmVision(
        classes,
        **frame,
        layers=options["layers"],
        layer_options=layer,
        block_type=options["block"],
        up_ratio=options["up_ratio"],
    )

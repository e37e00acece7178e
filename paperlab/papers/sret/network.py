"""The sliced recursive transformer: a stem of convolutions, three stages of recursive blocks with pooling between them, a head.

    stem     3 x (conv 3x3, BatchNorm, ReLU), stride 8 in all for images of 224      + a learned map of positions
    stage s  width C_s = dims[s], depth[s] applications of unique[s] blocks           (stage.py)
    pooling  depth-wise conv 3x3, stride 2, C_{s+1} / C_s channels out of each        between stages
    head     mean over the grid, LN, linear

`groups` says for each pass ("8,4,1", "2,1,1": the first, and all others) the number of groups in every stage, `layouts` how their
tokens are chosen. Random orders are drawn anew at every training step, where an rng "dropout" is given, one for all rows and heads;
otherwise they are fixed, drawn from `order_seed`, so that evaluation is a function of the image. The authors' code draws there too;
`orders` of the call takes any others.

Sources: Shen et al., arXiv 2111.05297, and the authors' code; PiT (pooling), arXiv 2103.16302.
"""

from functools import partial
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.norms import LayerNorm
from paperlab.layers.patches import PositionEmbedding
from paperlab.layers.projection import EPS, torch_linear
from paperlab.layers.sharding import constrain_rows
from paperlab.limits import above, at_least, between, hold, one_of, share
from paperlab.models.lm import REMAT
from paperlab.models.vit import options_of
from paperlab.papers.sret.attention import LAYOUTS, order_of
from paperlab.papers.sret.convolution import HOW, Convolution
from paperlab.papers.sret.stage import Pass, Stage, passes_of

STEM = 3  # convolutions
SIZES = ("dims", "heads", "depth", "unique")
DEFAULTS = {
    "dims": "64,128,256",  # one number a stage, here and in the next three
    "heads": "2,4,8",
    "depth": "4,10,6",
    "unique": "2,5,3",
    "groups": ("8,4,1", "2,1,1"),
    "layouts": ("raster", "random"),
    "order_seed": 0,
    "ffn_ratio": 3.6,
    "nll_ratio": 1.0,
    "nll": True,
    "lrc": True,
    "once": False,
    "stride": 8,
    "convolution": "xla",
    "drop_path": 0.0,
    "drop_path_by": "block",
    "batch_momentum": 0.9,
    "remat": "none",
    "dtype": "float32",
}
LIMITS = {
    "order_seed": at_least(0),
    "ffn_ratio": above(0),
    "nll_ratio": above(0),
    "stride": between(1, 2**STEM, "of the stem: 1, 2, 4 or 8"),
    "convolution": one_of(*HOW, note="patches: faster for several seeds at once on a CPU"),
    "drop_path": share(below=True),
    "drop_path_by": one_of("block", "application", note="block: as the authors' code, by unique block"),
    "batch_momentum": share("of the running statistics"),
    "remat": one_of(*REMAT),
    "dtype": one_of("float32", "bfloat16", "float16", "float64"),
}
SHARDING = (
    (r"(qkv|up)/kernel$", ("fsdp", "tensor")),
    (r"(out|down)/kernel$", ("tensor", "fsdp")),
    (r"head/kernel$", ("fsdp", "tensor")),
)


class SReT(nn.Module):
    """The fields are those of `DEFAULTS`, sizes as numbers. Images [B, X, Y, channels]; every stage must be able to cut its tokens
    into its groups."""

    classes: int
    dims: tuple[int, ...] = (64, 128, 256)
    heads: tuple[int, ...] = (2, 4, 8)
    depth: tuple[int, ...] = (4, 10, 6)
    unique: tuple[int, ...] = (2, 5, 3)
    groups: tuple[str, ...] = ("8,4,1", "2,1,1")
    layouts: tuple[str, ...] = ("raster", "random")
    order_seed: int = 0
    ffn_ratio: float = 3.6
    nll_ratio: float = 1.0
    nll: bool = True
    lrc: bool = True
    once: bool = False
    stride: int = 8
    convolution: str = "xla"
    drop_path: float = 0.0
    drop_path_by: str = "block"
    batch_momentum: float = 0.9
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        widths = (self.dims[0] // 2, self.dims[0], self.dims[0])
        conv = partial(Convolution, how=self.convolution, dtype=self.dtype)
        self.stem = [conv(width, stride) for width, stride in zip(widths, self.strides(), strict=True)]
        self.stem_norms = [
            nn.BatchNorm(momentum=self.batch_momentum, epsilon=1e-5, dtype=self.dtype) for _ in range(STEM)
        ]
        self.positions = PositionEmbedding(0.02, name="position")
        self.stages = [self._stage(s) for s in range(len(self.dims))]
        between = zip(self.dims[:-1], self.dims[1:], strict=True)
        self.pools = [conv(width, 2, before) for before, width in between]
        self.norm = LayerNorm(EPS)
        self.head = torch_linear(self.classes, self.dims[-1], jnp.promote_types(self.dtype, jnp.float32))

    def __call__(self, x_BxXxYxC: Array, *, train: bool = False, orders: dict[int, Array] | None = None) -> Array:
        """Logits [B, classes], float32 (float64).

        Args:
          train: gather statistics of the batch (collection "batch_stats"), else use the running ones.
          orders: {stage: int [K, B, N]}, instead of those that the layouts say.
        """
        x = x_BxXxYxC.astype(self.dtype)
        for conv, norm in zip(self.stem, self.stem_norms, strict=True):
            x = nn.relu(norm(conv(x), use_running_average=not train))
        x = constrain_rows(self.positions(x))
        for s, stage in enumerate(self.stages):
            x = x if s == 0 else self.pools[s - 1](x)
            grid = (x.shape[1], x.shape[2])
            self._fits(s, grid)
            given = (orders or {}).get(s)
            order = self._orders(s, grid) if given is None else given
            tokens = stage(x.reshape(x.shape[0], -1, self.dims[s]), order, jnp.asarray(self.drop_rates(s)))
            x = constrain_rows(tokens.reshape(x.shape))
        return self.head(self.norm(x.mean((1, 2))))

    @nn.nowrap
    def strides(self) -> tuple[int, ...]:
        """Of the stem's convolutions: the last ones have 2."""
        halvings = self.stride.bit_length() - 1
        return (1,) * (STEM - halvings) + (2,) * halvings

    @nn.nowrap
    def loops(self, s: int) -> int:
        """B of a stage."""
        return self.depth[s] // self.unique[s]

    @nn.nowrap
    def passes(self, s: int) -> tuple[Pass, ...]:
        """The passes of a stage."""
        groups = [_numbers(text)[s] for text in self.groups]
        return passes_of(groups, self.layouts, self.loops(s))

    @nn.nowrap
    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The grid of every stage, for images of this size."""
        x, y = (-(-side // self.stride) for side in size)
        found = [(x, y)]
        for _ in self.dims[1:]:
            x, y = -(-x // 2), -(-y // 2)
            found.append((x, y))
        return found

    @nn.nowrap
    def drop_rates(self, s: int) -> np.ndarray:
        """float32 [K, B]: linear in the index among all applications; by unique block or by application."""
        K, B, before, total = self.unique[s], self.loops(s), sum(self.depth[:s]), sum(self.depth)
        u, b = np.meshgrid(np.arange(K), np.arange(B), indexing="ij")
        index = u if self.drop_path_by == "block" else u * B + b
        return (self.drop_path * (before + index) / total).astype(np.float32)

    @nn.nowrap
    def sharding(self) -> tuple[tuple[str, tuple], ...]:
        """Rules for every parameter."""
        return SHARDING

    @nn.nowrap
    def forward_flops(self, params: Any, shape: tuple[int, ...]) -> float:
        """Of a batch of images [B, X, Y, C]: twice the products of `macs`."""
        del params
        return 2.0 * shape[0] * self.macs((shape[1], shape[2]), shape[3])

    @nn.nowrap
    def macs(self, size: tuple[int, int], channels: int = 3, *, sliced: bool = True) -> int:
        """Products of one image: convolutions, linear maps, 2 N^2 C / G for every attention; norms and sums are not counted.

        sliced: False counts full attention in every pass.
        """
        (x, y), total, before = size, 0, channels
        for width, stride in zip((self.dims[0] // 2, self.dims[0], self.dims[0]), self.strides(), strict=True):
            x, y = -(-x // stride), -(-y // stride)
            total, before = total + 9 * before * width * x * y, width
        for s, grid in enumerate(self.grids(size)):
            N, C = prod(grid), self.dims[s]
            total += 9 * C * N if s else 0
            for b, one in enumerate(self.passes(s)):
                groups = one.groups if sliced else 1
                if not (self.once and b):
                    total += self.unique[s] * (4 * N * C * C + 2 * N * N * C // groups + 2 * N * C * self._hidden(s))
                if self.nll:
                    total += self.unique[s] * 2 * N * C * int(C * self.nll_ratio)
        return total + self.dims[-1] * self.classes

    @nn.nowrap
    def _hidden(self, s: int) -> int:
        return int(self.dims[s] * self.ffn_ratio)

    @nn.nowrap
    def _stage(self, s: int) -> Stage:
        C = self.dims[s]
        sizes: dict[str, Any] = {"hidden": self._hidden(s), "projection_hidden": int(C * self.nll_ratio)}
        switches: dict[str, Any] = {
            "lrc": self.lrc,
            "nll": self.nll,
            "once": self.once,
            "dtype": self.dtype,
            "remat": REMAT[self.remat],
        }
        return Stage(C, self.heads[s], self.unique[s], self.passes(s), **sizes, **switches)

    @nn.nowrap
    def _fits(self, s: int, grid: tuple[int, int]) -> None:
        N = prod(grid)
        wrong = [one.groups for one in self.passes(s) if N % one.groups]
        if wrong:
            could = ", ".join(str(g) for g in range(1, min(N, 32) + 1) if N % g == 0)
            raise ConfigError(
                f"config.model.groups: {wrong[0]} groups do not divide the {N} tokens ({grid[0]} x {grid[1]}) of stage {s};"
                f" give it one of {could}, or images of another size"
            )

    def _orders(self, s: int, grid: tuple[int, int]) -> Array:
        """[K, B, N] of the layouts: random ones drawn at this step, or once and for all."""
        K, passes, N = self.unique[s], self.passes(s), prod(grid)
        layouts = [self.layouts[min(b, len(self.layouts) - 1)] for b in range(len(passes))]
        plain = np.arange(N, dtype=np.int32)
        table = np.stack([np.stack([plain] * len(passes))] * K)
        for u in range(K):
            for b, one in enumerate(passes):
                seed = (self.order_seed * 1_000 + s) * 100_000 + u * len(passes) + b
                found = order_of(layouts[b], grid, one.groups, seed) if one.ordered else None
                table[u, b] = plain if found is None else found
        drawn = np.array([one.ordered and layout == "random" for one, layout in zip(passes, layouts, strict=True)])
        if not drawn.any() or not self.has_rng("dropout"):
            return jnp.asarray(table)
        keys = jax.random.split(self.make_rng("dropout"), (K, len(passes)))
        fresh = jax.vmap(jax.vmap(lambda key: jax.random.permutation(key, jnp.asarray(plain))))(keys)
        return jnp.where(jnp.asarray(drawn)[None, :, None], fresh, jnp.asarray(table))


def make(config: Any, classes: int) -> SReT:
    """The network of `config.model` for this number of classes. Raises ConfigError, see `check`."""
    check(config)
    options = options_of(config, DEFAULTS)
    sizes = {name: _numbers(options[name]) for name in SIZES}
    lists = {name: tuple(options[name]) for name in ("groups", "layouts")}
    return SReT(classes, **{**options, **sizes, **lists})


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    options = options_of(config, DEFAULTS)
    hold({name: options[name] for name in LIMITS if name != "dtype"}, LIMITS, "config.model.")
    if options["dtype"] == jnp.float64 and not jax.config.jax_enable_x64:
        raise ConfigError("config.model.dtype='float64': jax computes in float32 unless JAX_ENABLE_X64=1 is set")
    sizes = {name: _numbers(options[name]) for name in SIZES}
    stages = len(sizes["dims"])
    for name, numbers in sizes.items():
        if not numbers or len(numbers) != stages:
            raise ConfigError(
                f"config.model.{name}={options[name]!r}: give a number for each stage of dims={options['dims']!r}, as in "
                f"{DEFAULTS[name]!r}"
            )
    for s, (width, heads) in enumerate(zip(sizes["dims"], sizes["heads"], strict=True)):
        if width < 2 or width % heads or (s and width % sizes["dims"][s - 1]):
            raise ConfigError(
                f"config.model.dims={options['dims']!r}, config.model.heads={options['heads']!r}: heads must divide the width "
                "of their stage, and the width of a stage that of the next"
            )
    for depth, unique in zip(sizes["depth"], sizes["unique"], strict=True):
        if depth % unique:
            raise ConfigError(
                f"config.model.depth={options['depth']!r}, config.model.unique={options['unique']!r}: every depth must be a "
                "multiple of its unique blocks"
            )
    if options["stride"].bit_count() > 1:
        raise ConfigError(f"config.model.stride={options['stride']}: three convolutions make 1, 2, 4 or 8")
    if not options["groups"] or not options["layouts"]:
        raise ConfigError("config.model.groups and config.model.layouts: name at least those of the first pass")
    for text in options["groups"]:
        if len(_numbers(text)) != stages:
            raise ConfigError(f"config.model.groups: {text!r} must be {stages} numbers, one a stage, as in '8,4,1'")
    for layout in options["layouts"]:
        if layout not in LAYOUTS:
            raise ConfigError(f"config.model.layouts: {layout!r} is none; choose from {', '.join(LAYOUTS)}")


def _numbers(text: str) -> tuple[int, ...]:
    """ "8,4,1" -> (8, 4, 1); () where it is no such text."""
    parts = str(text).split(",")
    found = tuple(int(part) for part in parts if part.strip().isdecimal())
    return found if len(found) == len(parts) and all(found) else ()

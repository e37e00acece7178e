"""Sliced group self-attention: tokens are put in an order, cut into G chunks that attend each to itself, and put back.

    y = W_o [ heads of softmax(q k^T / sqrt(D)) v, within each chunk of N / G tokens ] + b

Which tokens share a chunk is a layout, and every layout is an order pi of the tokens: x[:, pi] is cut, and the result gathered by
the inverse order before W_o.

    layout     order                                                chunk g holds
    raster     as they come                                         N / G neighbours in reading order
    random     drawn; the same for all rows and heads               any N / G tokens
    strided    i, i + G, i + 2 G, ...                               every G-th token, from g on (space to depth)
    windows    tile by tile                                         a rectangle of the grid

Scores cost 2 N^2 C / G products. Source: SReT, arXiv 2111.05297, section 3; its code: raster first, random afterwards.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.projection import torch_linear

LAYOUTS = ("raster", "random", "strided", "windows")


def order_of(layout: str, grid: tuple[int, int], groups: int, seed: int = 0) -> np.ndarray | None:
    """The order [N] of the tokens of a grid, int32, or None where they stay as they come. "random": drawn from `seed`.

    Raises:
      ConfigError: groups that do not divide the tokens.
    """
    X, Y = grid
    N = X * Y
    if N % groups:
        raise ConfigError(f"{groups} groups do not divide {N} tokens: choose a divisor of {N}")
    if groups == 1 or layout == "raster":
        return None
    if layout == "random":
        return np.random.default_rng(seed).permutation(N).astype(np.int32)
    if layout == "strided":
        return np.arange(N, dtype=np.int32).reshape(-1, groups).T.reshape(-1)
    if layout == "windows":
        gx, gy = _tiling(grid, groups)
        index = np.arange(N, dtype=np.int32).reshape(gx, X // gx, gy, Y // gy)
        return index.transpose(0, 2, 1, 3).reshape(-1)
    raise ValueError(f"layout {layout!r}: choose one of {', '.join(LAYOUTS)}")


def _tiling(grid: tuple[int, int], groups: int) -> tuple[int, int]:
    """Tiles along x and y: of those that fit, the ones nearest to a square. A divisor of X Y always fits."""
    X, Y = grid
    fits = [(gx, groups // gx) for gx in range(1, groups + 1) if groups % gx == 0 and X % gx == 0]
    fits = [(gx, gy) for gx, gy in fits if Y % gy == 0]
    return min(fits, key=lambda g: abs(X // g[0] - Y // g[1]))


class GroupAttention(nn.Module):
    """x [B, N, width] -> the same shape."""

    width: int
    heads: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.qkv = torch_linear(3 * self.width, self.width, self.dtype)
        self.out = torch_linear(self.width, self.width, self.dtype)

    def __call__(self, x_BxNxC: Array, groups: int = 1, order_N: Array | None = None) -> Array:
        """groups: chunks of equal size. order_N: int [N], a permutation; None: as the tokens come.

        Raises:
          ConfigError: groups that do not divide N.
        """
        B, N, C = x_BxNxC.shape
        if N % groups:
            raise ConfigError(f"{groups} groups do not divide {N} tokens: choose a divisor of {N}")
        x = x_BxNxC if order_N is None else x_BxNxC[:, order_N]
        cut = self.qkv(x).reshape(B * groups, N // groups, 3, self.heads, C // self.heads)
        y = _attend(cut[:, :, 0], cut[:, :, 1], cut[:, :, 2]).reshape(B, N, C)
        return self.out(y if order_N is None else y[:, jnp.argsort(order_N)])


def _attend(q: Array, k: Array, v: Array) -> Array:
    """[B, n, heads, D]; scores and softmax in float32 or wider (jax.nn.dot_product_attention has them in float32 always)."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bihd,bjhd->bhij", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    return jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores).astype(v.dtype), v)

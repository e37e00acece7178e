"""Images and grids of tokens: cut into patches, placed, and read out.

    patch      z_xy = W vec(image[p x : p x + p, p y : p y + p]) + b        a convolution whose stride is its width
    position   z_xy + E_xy, the table E resized bicubically to the grid that comes
    pool       one vector an image: mean, sum, the centre, the four corners, or a token of a class

The first axis of a grid is x, the second y, for images and for their patches alike.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.linear import matmul

POOLINGS = ("mean", "sum", "centre", "corners")
KEYS_CUBIC = -0.75  # the free parameter of the cubic kernel, as in torch and OpenCV (Keys, 1981, eq. 3)


class PatchEmbedding(nn.Module):
    """[B, X, Y, C] -> [B, X / patch, Y / patch, width]; with patches of one a linear map of every cell.

    Raises:
      ConfigError: sides that `patch` does not divide.
    """

    patch: int
    width: int
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        B, X, Y, C = x.shape
        p = self.patch
        if X % p or Y % p:
            raise ConfigError(f"config.model.patch={p} does not divide images of {X} x {Y}: choose a patch that does")
        cut = x.reshape(B, X // p, p, Y // p, p, C).swapaxes(2, 3).reshape(B, X // p, Y // p, p * p * C)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (p * p * C, self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        return matmul(cut.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class PositionEmbedding(nn.Module):
    """Adds a learned vector to every token [B, X, Y, width]; the table has the size of the grid that `init` saw.

    On another grid the table is resized (`resized`), as when a network is evaluated or tuned on larger images.
    """

    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.has_variable("params", "table"):
            table: Array = self.get_variable("params", "table")
        else:
            table = self.param("table", nn.initializers.normal(self.init_std), x.shape[1:], jnp.float32)
        return x + resized(table, (x.shape[1], x.shape[2])).astype(x.dtype)


def resized(table_XxYxD: Array, size: tuple[int, int]) -> Array:
    """A table [X, Y, D] at another size, by bicubic interpolation; the same array where the size is the same."""
    for axis, length in enumerate(size):
        if table_XxYxD.shape[axis] != length:
            weights = jnp.asarray(bicubic(table_XxYxD.shape[axis], length), table_XxYxD.dtype)
            table_XxYxD = jnp.moveaxis(jnp.tensordot(weights, table_XxYxD, (1, axis)), 0, axis)
    return table_XxYxD


def bicubic(old: int, new: int) -> np.ndarray:
    """float64 [new, old]: weights of the old samples in each new one; borders are repeated, pixels are areas, no smoothing.

    The same as torch's interpolate(mode="bicubic", align_corners=False), which vision models are published with.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(centres - (first + tap))
        np.add.at(weights, (np.arange(new), (first + tap).clip(0, old - 1)), _cubic(distance))
    return weights


def _cubic(d: np.ndarray) -> np.ndarray:
    a = KEYS_CUBIC
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def pool(x_BxXxYxD: Array, how: str) -> Array:
    """One vector an image: [B, D], or [B, 4 D] for the corners in the order (0,0), (last,0), (0,last), (last,last).

    Raises:
      ValueError: an unknown `how`.
    """
    X, Y = x_BxXxYxD.shape[1:3]
    if how == "mean":
        return x_BxXxYxD.mean((1, 2))
    if how == "sum":
        return x_BxXxYxD.sum((1, 2))
    if how == "centre":
        return x_BxXxYxD[:, X // 2, Y // 2]
    if how == "corners":
        return jnp.concatenate([x_BxXxYxD[:, x, y] for y in (0, -1) for x in (0, -1)], -1)
    raise ValueError(f"pooling {how!r}: choose one of {', '.join(POOLINGS)}")

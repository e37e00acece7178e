"""Feed-forward layers.

SwiGLU  y = (silu(x W_gate) * x W_up) W_down          width of the middle: 8 d / 3, rounded up to a multiple
MLP     y = f(x W_up) W_down
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.activations import activation
from paperlab.layers.linear import linear


def ffn_width(width: int, multiple: int) -> int:
    """8 d / 3 rounded up to a multiple: 1024 -> 2816 and 2048 -> 5632 for multiples of 256."""
    return -(-8 * width // (3 * multiple)) * multiple


class SwiGLU(nn.Module):
    width: int
    features: int
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02

    def setup(self) -> None:
        self.gate = linear(self.features, dtype=self.dtype, std=self.init_std)
        self.up = linear(self.features, dtype=self.dtype, std=self.init_std)
        self.down = linear(self.width, dtype=self.dtype, std=self.init_std)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class MLP(nn.Module):
    width: int
    features: int
    activation: str = "gelu"
    bias: bool = False
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02

    def setup(self) -> None:
        self.up = linear(self.features, bias=self.bias, dtype=self.dtype, std=self.init_std)
        self.down = linear(self.width, bias=self.bias, dtype=self.dtype, std=self.init_std)

    def __call__(self, x: Array) -> Array:
        return self.down(activation(self.activation, "activation")(self.up(x)))

"""What keeps a recursion from idling: learned residual coefficients, and a layer of its own after every application of a block.

    LRC    a x + b f(x)                            a, b numbers that start at 1                           (section 3)
    NLL    c1 x + c2 W2 gelu(W1 LN(x))             one for each application, never shared                 (section 3)

Source: Shen et al., arXiv 2111.05297.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.activations import activation
from paperlab.layers.linear import Dense, linear
from paperlab.layers.norms import LayerNorm

EPS = 1e-6


def torch_linear(features: int, fan_in: int, dtype: DTypeLike) -> Dense:
    """With bias; weights of the variance that torch starts with, 1 / (3 fan_in), biases at 0."""
    return linear(features, bias=True, dtype=dtype, std=(3 * fan_in) ** -0.5)


def coefficients(module: nn.Module, count: int, learned: bool) -> Array:
    """[count], float32: the parameter "residual" of a module, or ones that nothing learns."""
    if not learned:
        return jnp.ones(count)
    return module.param("residual", nn.initializers.ones, (count,), jnp.float32)


class Perceptron(nn.Module):
    """W2 gelu(W1 x + b1) + b2, the exact gelu."""

    width: int
    hidden: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.up = torch_linear(self.hidden, self.width, self.dtype)
        self.down = torch_linear(self.width, self.hidden, self.dtype)

    def __call__(self, x: Array) -> Array:
        return self.down(activation("gelu_erf", "activation")(self.up(x)))


class Projection(nn.Module):
    """NLL: `hidden` is int(width * ratio), ratio 1 for T and LT, 2 for S."""

    width: int
    hidden: int
    lrc: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.c = coefficients(self, 2, self.lrc)
        self.norm = LayerNorm(EPS)
        self.ffn = Perceptron(self.width, self.hidden, self.dtype)

    def __call__(self, x: Array) -> Array:
        c = self.c.astype(x.dtype)
        return c[0] * x + c[1] * self.ffn(self.norm(x))

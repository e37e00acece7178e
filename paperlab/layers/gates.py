"""Gates and block-diagonal maps: what a node says of itself, from its own input alone.

    gate = f(bias + W x)        W zero, small-normal or absent ("bias-only"), dense or block-diagonal

Block b of a block-diagonal map reads the b-th part of the channels and gives the b-th part of the outputs. Gates are computed in
float32 whatever the input. Source: pLSTM (arXiv 2506.11997), Table 4 and appendix D.1.
"""

from collections.abc import Callable
from functools import partial
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer
from jax import Array
from jax.typing import DTypeLike

from paperlab.errors import ConfigError
from paperlab.layers.norms import at_least_float32

SOURCE_BIAS, MARK_BIAS, DIRECT_BIAS, TRANSITION_BIAS = -4.0, -4.0, -6.0, 1.0
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}
WEIGHTS = ("none", "zeros", "normal")


def small_normal(fan_in: int) -> Initializer:
    """N(0, 2 / (5 fan_in)), the initialisation of projections and of the gates of pLSTM's DeiT-III runs."""
    return nn.initializers.normal((2 / (5 * fan_in)) ** 0.5)


class BlockLinear(nn.Module):
    """y = W x + b with W of `blocks` blocks on the diagonal; kernel [blocks, D / blocks, features / blocks].

    kernel_init: small-normal in the width of a block, if omitted.
    """

    features: int
    blocks: int = 1
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        D, blocks = x.shape[-1], self.blocks
        if D % blocks or self.features % blocks:
            raise ConfigError(f"blocks={blocks}: must divide the {D} inputs and the {self.features} outputs of the map")
        shape = (blocks, D // blocks, self.features // blocks)
        kernel = self.param("kernel", self.kernel_init or small_normal(shape[1]), shape, jnp.float32)
        rows = x.astype(self.dtype).reshape(-1, blocks, shape[1])
        if blocks == 1:
            y = rows[:, 0] @ kernel[0].astype(self.dtype)
        else:
            y = jnp.einsum("nbd,bdf->nbf", rows, kernel.astype(self.dtype))
        y = y.reshape(*x.shape[:-1], self.features)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return y


class Gate(nn.Module):
    """f(bias + W x): [..., D] -> [..., *shape] in float32.

    shape: of the gates of one node, e.g. (heads, JT, JK, JV); its entries in order are the outputs of the map.
    bias: where the logits start, a number or an initialiser of an array of `shape`.
    function: "sigmoid", "tanh" or "identity".
    weights: "none" (bias-only, the input is not looked at), "zeros" or "normal" (small-normal): how W starts.
    blocks: of W; must divide the channels and the number of gates.
    """

    shape: tuple[int, ...]
    bias: float | Initializer = 0.0
    function: str = "sigmoid"
    weights: str = "zeros"
    blocks: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = self.bias if callable(self.bias) else nn.initializers.constant(self.bias)
        bias = self.param("bias", start, self.shape, jnp.float32)
        lead = x.shape[:-1]
        if self.weights == "none":
            return jnp.broadcast_to(FUNCTIONS[self.function](bias), (*lead, *self.shape))
        wide = at_least_float32(x)
        init = nn.initializers.zeros if self.weights == "zeros" else None
        W = BlockLinear(prod(self.shape), self.blocks, dtype=wide.dtype, kernel_init=init, name="map")
        return FUNCTIONS[self.function](bias + W(wide).reshape(*lead, *self.shape))


SourceGate = partial(Gate, bias=SOURCE_BIAS)  # shape (heads, JT, JK, JV)
MarkGate = partial(Gate, bias=MARK_BIAS)  # shape (heads, JO, JQ, JT)
DirectGate = partial(Gate, bias=DIRECT_BIAS)  # shape (heads, JO, JQ, JK, JV)

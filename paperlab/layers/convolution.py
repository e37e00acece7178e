"""Short causal convolution, one filter a channel, that never looks across a document border.

    y_t = f( sum_j w_j * x_{t-j} ),   j = 0 .. width-1,   x of another document or before the beginning = 0

The state is the tail of `width - 1` inputs that the next call still needs.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.activations import activation


class ShortConvolution(nn.Module):
    features: int
    width: int = 4
    activation: str = "silu"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform", in_axis=0, out_axis=())
        self.kernel = self.param("kernel", init, (self.width, self.features), jnp.float32)

    def __call__(self, x_BxTxC: Array, tail_BxWxC: Array, runs_BxT: Array | None = None) -> tuple[Array, Array]:
        """Returns y_BxTxC and the new tail (float32).

        Args:
          x_BxTxC: input.
          tail_BxWxC: the last width - 1 inputs of the document under way, zeros before the beginning.
          runs_BxT: number of documents started so far in this call (`segments.runs`); the tail belongs to run 0.
        """
        T, W = x_BxTxC.shape[1], self.width - 1
        x = x_BxTxC.astype(self.dtype)
        x = jnp.concatenate([tail_BxWxC.astype(self.dtype), x], axis=1)
        kernel = self.kernel.astype(self.dtype)
        if runs_BxT is None:
            y = x[:, W:] * kernel[0]
            for j in range(1, self.width):
                y = y + x[:, W - j : W - j + T] * kernel[j]
            return self._activate(y), x[:, T:].astype(jnp.float32)
        runs = jnp.pad(runs_BxT, ((0, 0), (W, 0)))
        y = x[:, W:] * kernel[0]
        for j in range(1, self.width):
            same = runs[:, W - j : W - j + T] == runs_BxT
            y = y + jnp.where(same[..., None], x[:, W - j : W - j + T], 0) * kernel[j]
        tail = jnp.where((runs[:, T:] == runs[:, -1:])[..., None], x[:, T:], 0)
        return self._activate(y), tail.astype(jnp.float32)

    def step(self, x_BxC: Array, tail_BxWxC: Array) -> tuple[Array, Array]:
        y_Bx1xC, tail_BxWxC = self(x_BxC[:, None], tail_BxWxC)
        return y_Bx1xC[:, 0], tail_BxWxC

    @nn.nowrap
    def zero_tail(self, batch: int) -> Array:
        return jnp.zeros((batch, self.width - 1, self.features), jnp.float32)

    def _activate(self, y: Array) -> Array:
        return activation(self.activation, "activation")(y)

"""The pre-norm residual block around any sequence mixer.

y = s1 * x + mixer(norm(x))
x' = s2 * y + SwiGLU(norm(y))

s1 and s2 are 1, or with `residual_scale` learned vectors that start there (ParaRNN, arXiv 2510.21450, appendix C.1). With
`residual_coefficients` each of the four terms has a learned number before it, which starts at 1 (SReT, arXiv 2111.05297).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.mlp import SwiGLU
from paperlab.layers.norms import RMSNorm
from paperlab.layers.projection import coefficients
from paperlab.layers.sharding import constrain_rows


class Block(nn.Module):
    """`mixer` keeps the contract of paperlab.mixers. Dropout acts on both branches where an rng "dropout" is given."""

    mixer: Any
    width: int
    ffn_width: int
    norm_eps: float = 1e-6
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02
    residual_scale: bool = False
    residual_coefficients: bool = False

    def setup(self) -> None:
        self.mixer_residual = self._residual("mixer_residual_scale")
        self.ffn_residual = self._residual("ffn_residual_scale")
        if self.residual_coefficients:
            self.a = coefficients(self, 4, True)
        self.mixer_norm = RMSNorm(self.norm_eps)
        self.ffn_norm = RMSNorm(self.norm_eps)
        self.ffn = SwiGLU(self.width, self.ffn_width, self.dtype, self.init_std)
        self.drop = nn.Dropout(self.dropout)

    def _residual(self, name: str) -> Array | None:
        if not self.residual_scale:
            return None
        return self.param(name, nn.initializers.ones, (self.width,), jnp.float32)

    def __call__(
        self,
        x_BxTxD: Array,
        *,
        state: Any = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, Any]:
        mixed, state = self.mixer(self.mixer_norm(x_BxTxD), state=state, segment_ids=segment_ids, positions=positions)
        return constrain_rows(self._feed_forward(constrain_rows(self._mixed(x_BxTxD, self._dropped(mixed))))), state

    def step(self, x_BxD: Array, state: Any, position_B: Array | None = None) -> tuple[Array, Any]:
        mixed, state = self.mixer.step(self.mixer_norm(x_BxD), state, position_B)
        return self._feed_forward(self._mixed(x_BxD, mixed)), state

    def memory(self, x_BxkxD: Array, positions_Bxk: Array) -> Any:
        """Keys and values of these tokens, for `read`; only for mixers that have them."""
        return self.mixer.keys_values(self.mixer_norm(x_BxkxD), positions_Bxk)

    def read(
        self, x_BxkxD: Array, memory: Any, *, positions: Array, times: Array, segment_ids: Array | None = None
    ) -> Array:
        """The block where keys and values are those of all T tokens of the row: `times` [B, k] says which tokens these are."""
        mixed = self.mixer.read(
            self.mixer_norm(x_BxkxD), memory, positions=positions, times=times, segment_ids=segment_ids
        )
        return self._feed_forward(self._mixed(x_BxkxD, self._dropped(mixed)))

    def read_step(self, x_BxD: Array, state: Any, position_B: Array | None = None) -> tuple[Array, Any]:
        """One token that reads a cache in which it stands already; the cache stays as it is."""
        mixed = self.mixer.read_step(self.mixer_norm(x_BxD), state, position_B)
        return self._feed_forward(self._mixed(x_BxD, mixed)), state

    def _feed_forward(self, y: Array) -> Array:
        branch = self._dropped(self.ffn(self.ffn_norm(y)))
        return self._weighted(2, _scaled(y, self.ffn_residual), branch)

    def _mixed(self, x: Array, branch: Array) -> Array:
        return self._weighted(0, _scaled(x, self.mixer_residual), branch)

    def _weighted(self, first: int, x: Array, branch: Array) -> Array:
        if not self.residual_coefficients:
            return x + branch
        a = self.a.astype(x.dtype)
        return a[first] * x + a[first + 1] * branch

    def _dropped(self, x: Array) -> Array:
        active = self.dropout > 0 and self.has_rng("dropout")
        return self.drop(x, deterministic=False) if active else x


def _scaled(x: Array, scale: Array | None) -> Array:
    return x if scale is None else x * scale.astype(x.dtype)

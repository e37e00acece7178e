"""The cell alone: embedding, one recurrent cell, RMSNorm, linear head (arXiv 2510.21450, section 5 and Table 6, "cell only").

    x_t = E[token_t],   h_t = cell(x_t, h_{t-1}),   logits_t = norm(h_t) W + b

No residual stream, no MLP, no convolution: what the model can follow is what its recurrence can. `config.mixers.pararnn.bare`
leaves of the mixer nothing but the cell and its input map; any other mixer may stand in its place as a baseline.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.layers.linear import linear
from paperlab.layers.norms import RMSNorm
from paperlab.limits import above, at_least, hold, one_of

DEFAULTS = {
    "mixer": "pararnn",
    "width": 32,
    "heads": 1,
    "norm_eps": 1e-6,
    "embedding_std": 1.0,
    "dtype": "float32",
}
LIMITS = {
    "width": at_least(1),
    "heads": at_least(1),
    "norm_eps": above(0),
    "embedding_std": above(0),
    "dtype": one_of("float32", "bfloat16", "float16", "float64"),
}
SHARDING = ((r"embedding$", ("tensor", "fsdp")), (r"head/kernel$", ("fsdp", "tensor")))


class CellOnly(nn.Module):
    """Tokens [B, T] -> logits [B, T, vocab], around one sequence mixer."""

    vocab_size: int
    mixer: Any
    width: int
    norm_eps: float = 1e-6
    embedding_std: float = 1.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        normal = nn.initializers.normal(self.embedding_std)
        self.embedding = self.param("embedding", normal, (self.vocab_size, self.width), jnp.float32)
        self.norm = RMSNorm(self.norm_eps)
        self.head = linear(self.vocab_size, bias=True, dtype=self.dtype, std=self.width**-0.5)

    def __call__(
        self,
        tokens_BxT: Array,
        *,
        state: Any = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, Any]:
        """Logits [B, T, vocab] in float32, and the state after the last token (None where none was given)."""
        x = self.embedding.astype(self.dtype)[tokens_BxT]
        h, state = self.mixer(x, state=state, segment_ids=segment_ids, positions=positions)
        return self._logits(h), state

    def step(self, token_B: Array, state: Any, position_B: Array | None = None) -> tuple[Array, Any]:
        """One token: logits [B, vocab] and the next state."""
        h, state = self.mixer.step(self.embedding.astype(self.dtype)[token_B], state, position_B)
        return self._logits(h), state

    @nn.nowrap
    def zero_state(self, batch: int, max_len: int = 0, dtype: DTypeLike | None = None) -> Any:
        """The mixer's, before the first token."""
        return self.mixer.zero_state(batch, max_len, dtype or self.dtype)

    @nn.nowrap
    def sharding(self) -> tuple[tuple[str, tuple], ...]:
        """Rules for the parameters of this model and of its mixer."""
        return (*SHARDING, *find("mixers", type(self.mixer).__module__.rpartition(".")[2]).SHARDING)

    def _logits(self, h: Array) -> Array:
        logits = self.head(self.norm(h))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def make(config: Any, vocab_size: int) -> CellOnly:
    """The model that `config.model` and `config.mixers` describe. Raises ConfigError: see `check`."""
    check(config)
    model = config["model"]
    options = {name: model[name] for name in ("width", "norm_eps", "embedding_std")}
    return CellOnly(vocab_size, _mixer(config), dtype=jnp.dtype(model["dtype"]), **options)


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    model = config["model"]
    hold({name: model[name] for name in LIMITS}, LIMITS, "config.model.")
    if model["dtype"] == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("config.model.dtype='float64': jax computes in float32 unless JAX_ENABLE_X64=1 is set")
    mixer = _mixer(config)
    if hasattr(mixer, "check"):
        mixer.check()


def mixers_of(config: Any) -> set[str]:
    """The name of the mixer. Raises ConfigError for one that there is not."""
    name = config["model"]["mixer"]
    try:
        find("mixers", name)
    except ConfigError as error:
        raise ConfigError(f"config.model.mixer={name!r}: {error}") from None
    return {name}


def matmul_parameters(params: Any) -> int:
    """Number of parameters that every token is multiplied with: all but the embedding."""
    own = params["params"]
    return sum(a.size for a in jax.tree.leaves(own)) - own["embedding"].size


def _mixer(config: Any) -> Any:
    (name,) = mixers_of(config)
    model, options = config["model"], dict(config.get("mixers", {}).get(name, {}))
    return find("mixers", name).Mixer(model["width"], model["heads"], jnp.dtype(model["dtype"]), **options, parent=None)

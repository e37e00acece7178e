"""The decoder alone: a language model of the contract of paperlab.models.lm, which `paperlab.generate` continues texts with.

A state holds the keys and values of every step at every position, and how many tokens it has seen.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.depth.program import Program
from paperlab.errors import ConfigError
from paperlab.layers.sharding import constrain_rows
from paperlab.papers.universal_transformer import options as said
from paperlab.papers.universal_transformer.attention import sight_of

DEFAULTS, LIMITS = said.DEFAULTS, said.LIMITS


class Decoder(nn.Module):
    """`options`: those of options.DEFAULTS, as pairs."""

    vocab_size: int
    options: tuple[tuple[str, Any], ...]

    def setup(self) -> None:
        o = dict(self.options)
        self.symbols = said.Embedding(self.vocab_size, o["width"], o["tie_embeddings"], jnp.dtype(o["dtype"]))
        self.decoder = said.sides(o, causal=True)

    def __call__(
        self,
        tokens_BxT: Array,
        *,
        state: dict | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, dict | None]:
        """Logits [B, T, vocab] in float32, and the state after the last token (None where none was given)."""
        x, state = self.hidden(tokens_BxT, state=state, segment_ids=segment_ids, positions=positions)
        return self.head(x), state

    def hidden(
        self,
        tokens_BxT: Array,
        *,
        state: dict | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, dict | None]:
        """What the head reads, [B, T, width]. With an rng "dropout" the form of "act" that can be differentiated is taken; the cost
        of pondering, [B], is sown as "losses/ponder", n and R as "intermediates".

        Raises:
          ConfigError: documents packed into rows that go on from a state.
        """
        T = tokens_BxT.shape[1]
        seen = None if state is None else state["seen"]
        if state is not None and segment_ids is not None:
            raise ConfigError(
                "the Universal Transformer's cache holds one document a row: leave out segment_ids (config.task.carry_state)"
            )
        if positions is None:
            positions = jnp.arange(T)[None] if seen is None else seen[:, None] + jnp.arange(T)
        slots = 0 if state is None else state["cache"]["unit"]["inner_0"]["attention"]["k"].shape[2]
        sight = sight_of(T, causal=True, segments=segment_ids, seen_B=seen, slots=slots)
        x, cache, told = self.decoder(
            constrain_rows(self.symbols(tokens_BxT)),
            sight,
            positions,
            cache=None if state is None else state["cache"],
            stop_early=not (self.has_rng("dropout") or self.is_initializing()),
        )
        if not self.is_initializing():
            self.sow("losses", "ponder", told["extra_loss"])
            for name in ("ponder", "remainder"):
                if name in told:
                    self.sow("intermediates", name, told[name])
        return x, None if seen is None else {"cache": cache, "seen": seen + T}

    def step(self, token_B: Array, state: dict, position_B: Array | None = None) -> tuple[Array, dict]:
        """One token: logits [B, vocab] and the next state."""
        positions = None if position_B is None else position_B[:, None]
        x, after = self.hidden(token_B[:, None], state=state, positions=positions)
        assert after is not None
        return self.head(x[:, 0]), after

    def head(self, x: Array) -> Array:
        """Logits of x [..., width]."""
        return self.symbols.logits(x)

    @nn.nowrap
    def zero_state(self, batch: int, max_len: int = 0, dtype: DTypeLike | None = None) -> dict[str, Any]:
        """The state before the first token, with room for `max_len` of them in every step."""
        if max_len < 1:
            raise ValueError(f"zero_state needs max_len >= 1, the number of tokens to hold; got {max_len}")
        side = said.sides(dict(self.options), causal=True)
        return {"cache": side.zero_cache(batch, max_len, dtype), "seen": jnp.zeros((batch,), jnp.int32)}

    @property
    def adds_to_loss(self) -> bool:
        """Whether "losses" are sown."""
        return dict(self.options)["recurrence"] == "act"

    @nn.nowrap
    def depth_program(self) -> Program:
        """Which unique layer runs when."""
        return said.sides(dict(self.options), causal=True).depth_program()

    @nn.nowrap
    def repeated_parameters(self, params: Any) -> int:
        """What a token is multiplied with again: the tied step, for every time after the first."""
        options = dict(self.options)
        once = sum(a.size for a in jax.tree.leaves(params["params"]["decoder"]["unit"]))
        return once * (options["steps"] - 1) if options["tied"] else 0

    @nn.nowrap
    def sharding(self) -> tuple:
        """Rules for every parameter."""
        return said.SHARDING


def matmul_parameters(params: Any) -> int:
    """Number of parameters that every token is multiplied with: all but an input embedding that is not the head too."""
    own = params["params"]
    looked_up = own["symbols"]["embedding"].size if "head" in own["symbols"] else 0
    return sum(a.size for a in jax.tree.leaves(own)) - looked_up


def make(config: Any, vocab_size: int) -> Decoder:
    """The model that `config.model` describes. Raises ConfigError: see `check`."""
    check(config)
    return Decoder(vocab_size, tuple(said.options_of(config).items()))


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    said.check(config, cached=True)

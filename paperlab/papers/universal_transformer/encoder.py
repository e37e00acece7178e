"""The encoder alone, with something said at every position: classification of positions, rows or questions.

Rows of symbols [B, T], or of facts [B, F, W] of words, where a fact is the sum of its words' embeddings times a learned mask of
their places (section 3.1 of the paper, bAbI). Every row may take its own number of steps.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from paperlab.layers.linear import xavier_linear
from paperlab.layers.sharding import constrain_rows
from paperlab.limits import at_least
from paperlab.papers.universal_transformer import options as said
from paperlab.papers.universal_transformer.attention import sight_of

DEFAULTS = {**said.DEFAULTS, "words": 0}
LIMITS = {**said.LIMITS, "words": at_least(0, "of a fact; 0: rows are symbols, not facts")}


class Encoder(nn.Module):
    """`outputs` numbers at each position. `words`: the longest fact, 0 for rows of symbols."""

    vocab_size: int
    outputs: int
    options: tuple[tuple[str, Any], ...]
    words: int = 0

    def setup(self) -> None:
        o = dict(self.options)
        dtype = jnp.dtype(o["dtype"])
        self.symbols = said.Embedding(self.vocab_size, o["width"], dtype=dtype)
        self.encoder = said.sides(o)
        self.head = xavier_linear(self.outputs, bias=True, dtype=dtype, gain=1.0)
        if self.words:
            self.word_mask = self.param("word_mask", nn.initializers.ones, (self.words, o["width"]), jnp.float32)

    def __call__(
        self,
        tokens: Array,
        *,
        valid: Array | None = None,
        steps_B: Array | None = None,
        limit: int = 0,
        train: bool = False,
    ) -> tuple[Array, dict[str, Any]]:
        """Logits [B, T, outputs] in float32, and notes.

        Args:
          tokens: [B, T], or [B, F, W] with `words`; 0 is padding where facts are shorter.
          valid: bool [B, T], or [B, F, W]; a fact with any word is one. None: everywhere.
          steps_B: int32 [B], at most `steps`; None: all.
          limit: so many steps are run at most; 0: all.
          train: see seq2seq.

        Returns:
          logits, and {"extra_loss" [B], "steps": {"encoder": a number}}; with "act" also "ponder" n and "remainder" R,
          {"encoder": [B, T]}.

        Raises:
          ValueError: facts where rows are meant, or the other way round.
        """
        if (tokens.ndim == 3) != bool(self.words):
            raise ValueError(
                f"tokens of shape {tokens.shape}: config.model.words={self.words} means "
                f"{'facts [B, F, W]' if self.words else 'rows [B, T]'}"
            )
        x = self.symbols(tokens)
        if self.words:
            there = tokens != said.PADDING if valid is None else valid
            mask = self.word_mask[: tokens.shape[2]].astype(x.dtype)
            x, valid = (jnp.where(there[..., None], x, 0) * mask).sum(2), there.any(2)
        sight = sight_of(x.shape[1], causal=False, valid=valid)
        early = not (train or self.is_initializing())
        x, _, told = self.encoder(
            constrain_rows(x), sight, jnp.arange(x.shape[1])[None], steps_B=steps_B, limit=limit, stop_early=early
        )
        notes = {name: {"encoder": told[name]} for name in told if name != "extra_loss"}
        return self.head(x).astype(jnp.promote_types(x.dtype, jnp.float32)), {**notes, "extra_loss": told["extra_loss"]}

    @nn.nowrap
    def sharding(self) -> tuple:
        """Rules for every parameter."""
        return said.SHARDING


def make(config: Any, vocab_size: int, outputs: int) -> Encoder:
    """The model that `config.model` describes. Raises ConfigError: see `check`."""
    check(config)
    words = int(dict(config["model"]).get("words", 0))
    return Encoder(vocab_size, outputs, tuple(said.options_of(config).items()), words)


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    said.check(config)

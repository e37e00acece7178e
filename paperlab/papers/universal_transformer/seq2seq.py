"""Encoder and decoder: each its own step, tied over its depth; the decoder attends to the encoder's last state in every step.

    memory = Encoder(source),   logits = Decoder(targets shifted right, memory) W

Token 0 is padding and what the decoder starts from (a zero vector), 1 ends a sequence. Source: Universal Transformer, section 2.1.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from paperlab.layers.sharding import constrain_rows
from paperlab.papers.universal_transformer import options as said
from paperlab.papers.universal_transformer.attention import sight_of

DEFAULTS, LIMITS = said.DEFAULTS, said.LIMITS


class SequenceToSequence(nn.Module):
    """`options`: those of options.DEFAULTS, as pairs."""

    vocab_size: int
    options: tuple[tuple[str, Any], ...]

    def setup(self) -> None:
        o = dict(self.options)
        self.symbols = said.Embedding(self.vocab_size, o["width"], o["tie_embeddings"], jnp.dtype(o["dtype"]))
        self.encoder, self.decoder = said.sides(o), said.sides(o, causal=True, cross=True)

    def __call__(
        self,
        source_BxS: Array,
        inputs_BxT: Array,
        *,
        source_valid: Array | None = None,
        target_valid: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, dict[str, Any]]:
        """Logits [B, T, vocab] in float32 for the symbols after each input, and notes.

        Args:
          source_BxS, inputs_BxT: symbols; inputs are the targets shifted right, 0 first.
          source_valid, target_valid: bool, where symbols are; None: everywhere.
          train: takes the form of "act" that can be differentiated; the other one stops when all have halted.

        Rngs: "dropout", "positions" (random offsets of positions), "halting" (of halting="random"; without it the
        same draws each time).

        Returns:
          logits, and {"extra_loss": [B], "steps": {"encoder", "decoder"}}; with "act" also "ponder" n and "remainder" R [B, T].
        """
        early = not (train or self.is_initializing())
        memory, told = self._encode(source_BxS, source_valid, early)
        sight = sight_of(inputs_BxT.shape[1], causal=True, valid=target_valid)
        x = constrain_rows(self._embed_inputs(inputs_BxT))
        x, _, own = self.decoder(
            x, sight, jnp.arange(x.shape[1])[None], memory=memory["keys"], seen=memory["seen"], stop_early=early
        )
        notes = {name: {"encoder": told[name], "decoder": own[name]} for name in told if name != "extra_loss"}
        return self.symbols.logits(x), {**notes, "extra_loss": told["extra_loss"] + own["extra_loss"]}

    def encode(self, source_BxS: Array, *, source_valid: Array | None = None) -> dict[str, Any]:
        """What `step` attends to: keys and values for every unique step, and where symbols are."""
        return self._encode(source_BxS, source_valid, early=True)[0]

    def step(self, token_B: Array, state: dict, memory: dict, position_B: Array) -> tuple[Array, dict]:
        """One symbol: logits [B, vocab] of the next, and the state."""
        x = self._embed_inputs(token_B[:, None])
        seen = state["seen"]
        sight = sight_of(1, causal=True, seen_B=seen, slots=_slots(state["cache"]))
        x, cache, _ = self.decoder(
            x, sight, position_B[:, None], memory=memory["keys"], seen=memory["seen"], cache=state["cache"]
        )
        return self.symbols.logits(x)[:, 0], {"cache": cache, "seen": seen + 1}

    @nn.nowrap
    def zero_state(self, memory: dict, max_len: int) -> dict[str, Any]:
        """Before the first symbol of a target of at most `max_len`: an empty cache for every step."""
        rows = jax.tree.leaves(memory["keys"])[0].shape[1]
        side = said.sides(dict(self.options), causal=True, cross=True)
        return {"cache": side.zero_cache(rows, max_len), "seen": jnp.zeros((rows,), jnp.int32)}

    @nn.nowrap
    def sharding(self) -> tuple:
        """Rules for every parameter."""
        return said.SHARDING

    def _embed_inputs(self, tokens: Array) -> Array:
        x = self.symbols(tokens)
        return jnp.where((tokens != said.PADDING)[..., None], x, 0)

    def _encode(self, source: Array, valid: Array | None, early: bool) -> tuple[dict, dict]:
        S = source.shape[1]
        x, _, notes = self.encoder(
            constrain_rows(self.symbols(source)),
            sight_of(S, causal=False, valid=valid),
            jnp.arange(S)[None],
            stop_early=early,
        )
        seen = None if valid is None else valid[:, None]
        return {"keys": self.decoder.memory_keys(x), "seen": seen}, notes


def _slots(cache: Any) -> int:
    return cache["unit"]["inner_0"]["attention"]["k"].shape[2]


def make(config: Any, vocab_size: int) -> SequenceToSequence:
    """The model that `config.model` describes, for so many symbols. Raises ConfigError: see `check`."""
    check(config)
    return SequenceToSequence(vocab_size, tuple(said.options_of(config).items()))


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together."""
    said.check(config, cached=True)

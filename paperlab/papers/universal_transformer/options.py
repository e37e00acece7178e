"""What `config.model` says of a Universal Transformer, for all three of its forms: encoder, decoder, both."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.depth.halting import KINDS as HALTING
from paperlab.errors import ConfigError
from paperlab.layers.linear import matmul, xavier_linear
from paperlab.limits import above, at_least, hold, one_of, share
from paperlab.models.lm import REMAT
from paperlab.papers.universal_transformer import block, timing, transition
from paperlab.papers.universal_transformer.recurrence import Recurrence

SIDE = {
    "steps": 6,
    "tied": True,
    "inner_layers": 1,
    "before": 0,
    "after": 0,
    "recurrence": "basic",
    "gate_inputs": "sti",
    "own_carry": False,
    "layout": "concatenated",
    "position_signal": True,
    "step_signal": "learned",
    "signal_at": "step",
    "signal_by": "add",
    "position_start": "none",
    "max_timescale": 10_000.0,
    "halting": "basic",
    "halting_eps": 0.01,
    "halting_bias_init": 1.0,
    "halting_weight": 0.01,
    "freeze_halted": False,
    "remat": "none",
}
LAYER = {
    "hidden": 128,
    "heads": 4,
    "norm": "pre",
    "transition": "fc",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "relu_dropout": 0.0,
}
DEFAULTS = {"width": 64, **LAYER, **SIDE, "tie_embeddings": True, "dtype": "float32"}
LIMITS = {
    "width": at_least(1),
    "hidden": at_least(1),
    "heads": at_least(1),
    "norm": one_of(*block.NORMS),
    "transition": one_of(*transition.KINDS),
    "dropout": share(below=True),
    "attention_dropout": share(below=True),
    "relu_dropout": share(below=True),
    "steps": at_least(1, "with act: the most that a position takes"),
    "inner_layers": at_least(1, "layers in a step"),
    "before": at_least(0, "layers of their own before the recurrence"),
    "after": at_least(0, "layers of their own after it"),
    "recurrence": one_of(*block.RECURRENCES),
    "layout": one_of(*timing.LAYOUTS, note="interleaved: the paper; concatenated: its code"),
    "step_signal": one_of("learned", "sinusoid", "none"),
    "signal_at": one_of("step", "input", note="input: positions alone, once, as a Transformer has them"),
    "signal_by": one_of("add", "concat"),
    "position_start": one_of("none", "random", "step"),
    "max_timescale": above(0),
    "halting": one_of(*HALTING),
    "halting_eps": share(below=True),
    "halting_weight": at_least(0),
    "remat": one_of(*REMAT),
    "dtype": one_of("float32", "bfloat16", "float16", "float64"),
}
SHARDING = (
    (r"embedding$", ("tensor", "fsdp")),
    (r"head/kernel$", ("fsdp", "tensor")),
    (r"(q|k|v|up)/kernel$", ("fsdp", "tensor")),
    (r"(out|down)/kernel$", ("tensor", "fsdp")),
)
PADDING, END = 0, 1


def options_of(config: Any) -> dict[str, Any]:
    """The fields of DEFAULTS as `config.model` has them."""
    return {**DEFAULTS, **{name: value for name, value in dict(config["model"]).items() if name in DEFAULTS}}


def check(config: Any, *, cached: bool = False) -> None:
    """Raises ConfigError for options out of range, or that do not go together; `cached`: the model decodes token by token."""
    o = options_of(config)
    hold(o, LIMITS, "config.model.")
    if o["width"] % o["heads"]:
        raise ConfigError(
            f"config.model.heads={o['heads']} must divide config.model.width={o['width']}: change one of them"
        )
    if o["dtype"] == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("config.model.dtype='float64': jax computes in float32 unless JAX_ENABLE_X64=1 is set")
    gates = o["gate_inputs"]
    if not gates or set(gates) - set("sti") or len(set(gates)) < len(gates):
        raise ConfigError(
            f"config.model.gate_inputs={gates!r}: say some of the letters s (state), t (transformed), i (input)"
        )
    if o["recurrence"] in block.CELLS and o["inner_layers"] > 1:
        raise ConfigError(
            f"config.model.inner_layers={o['inner_layers']}: recurrence={o['recurrence']!r} takes the place of the transition,"
            " it has one layer a step"
        )
    if cached and o["position_start"] == "step":
        raise ConfigError(
            "config.model.position_start='step': offsets follow the length, which a decoder does not know; say 'none' or 'random'"
        )
    if cached and o["recurrence"] == "act" and o["halting"] == "global":
        raise ConfigError(
            "config.model.halting='global': its mean over positions sees later tokens, which a decoder must not; choose another"
        )


def sides(options: dict[str, Any], *, causal: bool = False, cross: bool = False) -> Recurrence:
    """The recurrence that these options describe."""
    layer = (*((name, options[name]) for name in LAYER), ("causal", causal), ("cross", cross))
    side = {name: options[name] for name in SIDE}
    return Recurrence(options["width"], layer, dtype=jnp.dtype(options["dtype"]), **side)


class Embedding(nn.Module):
    """Symbols in and out: E[token] sqrt(d), and logits from the same table or a map of their own."""

    vocab_size: int
    width: int
    tied: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        normal = nn.initializers.normal(self.width**-0.5)
        self.embedding = self.param("embedding", normal, (self.vocab_size, self.width), jnp.float32)
        if not self.tied:
            self.head = xavier_linear(self.vocab_size, bias=True, dtype=self.dtype, gain=1.0)

    def __call__(self, tokens: Array) -> Array:
        """[..., width]."""
        return self.embedding.astype(self.dtype)[tokens] * self.width**0.5

    def logits(self, x: Array) -> Array:
        """[..., vocab], at least float32."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        if self.tied:
            return matmul(x.astype(self.dtype), self.embedding.T.astype(self.dtype), out_dtype=wide)
        return self.head(x).astype(wide)

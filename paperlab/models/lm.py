"""The language model: embedding, a stack of residual blocks around sequence mixers, head.

    x_0 = E[token],   x_{l+1} = Block_l(x_l),   logits = norm(x_L) W

It knows no mixer: `config.model.mixer` or the pattern `config.model.hybrid` ("gla,gla,attention", repeated over the
layers) names files in paperlab/mixers. The layers of one mixer lie stacked under `blocks/<mixer>`. `config.model.program` says
which of them runs when (paperlab.depth.program.parse): "" each once, "loop:3" all of them three times, "middle_cycle:2" ... so that
`depth` counts applications. A state is {mixer: states of its applications, stacked}, leaves [application, batch, ...].

What keeps shared layers from idling (SReT, arXiv 2111.05297) goes with any mixer: `interleaved` puts a perceptron of its own, that
many times the width, after every application, under `interleaved/<mixer>`; `residual_coefficients` weighs every residual sum.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.depth.execute import Layers, run
from paperlab.depth.program import Program, parse
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.layers.block import Block
from paperlab.layers.linear import matmul
from paperlab.layers.mlp import ffn_width
from paperlab.layers.norms import RMSNorm
from paperlab.layers.projection import Projection
from paperlab.layers.sharding import constrain_rows
from paperlab.limits import above, at_least, hold, one_of, share

DEFAULTS = {
    "mixer": "gla",
    "hybrid": "",
    "width": 96,
    "depth": 4,
    "program": "",
    "heads": 2,
    "ffn_multiple": 32,
    "tie_embeddings": True,
    "vocab_multiple": 1,
    "norm_eps": 1e-6,
    "dropout": 0.0,
    "init_std": 0.02,
    "scaled_residual_init": False,
    "residual_scale": False,
    "residual_coefficients": False,
    "interleaved": 0.0,
    "remat": "none",
    "unroll": 1,
    "dtype": "float32",
}

SHARDING = (
    (r"embedding$", ("tensor", "fsdp")),
    (r"head$", ("fsdp", "tensor")),
    (r"ffn/(gate|up)/kernel$", ("fsdp", "tensor")),
    (r"ffn/down/kernel$", ("tensor", "fsdp")),
)

REMAT = {
    "none": lambda body: body,
    "full": lambda body: jax.checkpoint(body, prevent_cse=False),
    "dots": lambda body: jax.checkpoint(
        body, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}
LIMITS = {
    "width": at_least(1),
    "depth": at_least(1, "layers"),
    "heads": at_least(1),
    "ffn_multiple": at_least(1),
    "vocab_multiple": at_least(1),
    "norm_eps": above(0),
    "dropout": share(below=True),
    "init_std": at_least(0),
    "interleaved": at_least(0, "times the width; 0: none"),
    "remat": one_of(*REMAT),
    "unroll": at_least(1, "periods of layers in a turn of the loop"),
    "dtype": one_of("float32", "bfloat16", "float16", "float64"),
}
_RESIDUAL_OUTPUT = re.compile(r"(out|down)/kernel$")

State = dict[str, Any]


class MixerChoice(NamedTuple):
    name: str
    options: tuple[tuple[str, Any], ...] = ()


class LanguageModel(nn.Module):
    """`mixers` holds the options of every mixer that `pattern` names; the other fields are those of `DEFAULTS`."""

    vocab_size: int
    mixers: tuple[MixerChoice, ...]
    pattern: tuple[str, ...]
    width: int
    depth: int
    heads: int
    ffn_multiple: int = 256
    tie_embeddings: bool = True
    vocab_multiple: int = 1
    program: str = ""
    norm_eps: float = 1e-6
    dropout: float = 0.0
    init_std: float = 0.02
    scaled_residual_init: bool = False
    residual_scale: bool = False
    residual_coefficients: bool = False
    interleaved: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        padded = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
        normal = nn.initializers.normal(self.init_std)
        self.embedding = self.param("embedding", normal, (padded, self.width), jnp.float32)
        self.blocks = self.param("blocks", self._init_blocks)
        self.between = self.param("interleaved", self._init_interleaved) if self.interleaved else None
        self.final_norm = RMSNorm(self.norm_eps)
        if not self.tie_embeddings:
            self.head_kernel = self.param("head", normal, (self.width, padded), jnp.float32)

    def __call__(
        self,
        tokens_BxT: Array,
        *,
        state: State | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, State | None]:
        """Logits [B, T, vocab] in float32, and the state after the last token (None where none was given)."""
        x, state = self.hidden(tokens_BxT, state=state, segment_ids=segment_ids, positions=positions)
        return self.head(x), state

    def hidden(
        self,
        tokens_BxT: Array,
        *,
        state: State | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
    ) -> tuple[Array, State | None]:
        """What the head reads: the normalised output of the last block, [B, T, width]."""

        def call(block, params, x, state, rngs, mutable):
            return block.apply(
                params, x, state=state, segment_ids=segment_ids, positions=positions, rngs=rngs, mutable=mutable
            )

        x, state = self._through_blocks(call, self._embed(tokens_BxT), state, REMAT[self.remat])
        return self.final_norm(x), state

    def step(self, token_B: Array, state: State, position_B: Array | None = None) -> tuple[Array, State | None]:
        """One token: logits [B, vocab] and the next state; for recurrent mixers in constant time and memory."""

        def call(block, params, x, state, rngs, mutable):
            return block.apply(params, x, state, position_B, rngs=rngs, mutable=mutable, method="step")

        x, after = self._through_blocks(call, self._embed(token_B), state, REMAT["none"])
        return self.head(self.final_norm(x)), after

    def head(self, x: Array) -> Array:
        """Logits of x [..., width] in float32; the padding of the vocabulary is cut off."""
        kernel = self.embedding.T if self.tie_embeddings else self.head_kernel
        logits = matmul(x, kernel.astype(self.dtype), out_dtype=jnp.promote_types(self.dtype, jnp.float32))
        return logits[..., : self.vocab_size]

    @nn.nowrap
    def zero_state(self, batch: int, max_len: int = 0, dtype: DTypeLike | None = None) -> State:
        """The state before the first token.

        Args:
          batch: rows.
          max_len: tokens that an attention cache must hold; recurrent mixers do not look at it.
          dtype: of attention caches, the compute dtype if omitted. Recurrent states are float32.
        """

        def stacked(name: str, layers: int) -> Any:
            one = self.block(name).mixer.zero_state(batch, max_len, dtype or self.dtype)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (layers, *a.shape)), one)

        return {name: stacked(name, layers) for name, layers in Counter(self.layer_names()).items()}

    @nn.nowrap
    def depth_program(self) -> Program:
        """Which unique layer runs when."""
        return parse(self.program, self.depth)

    @nn.nowrap
    def unique_names(self) -> tuple[str, ...]:
        """The mixer of every unique layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.depth_program().unique))

    @nn.nowrap
    def layer_names(self) -> tuple[str, ...]:
        """The mixer of every application of a layer, from the first to the last."""
        unique = self.unique_names()
        return tuple(unique[i] for i in self.depth_program().layers)

    @nn.nowrap
    def layer_counts(self) -> dict[str, int]:
        """{mixer: number of unique layers}."""
        return dict(Counter(self.unique_names()))

    @nn.nowrap
    def repeated_parameters(self, params: Any) -> int:
        """What a token is multiplied with again: parameters of layers that run more than once, for each further time (negative
        for layers that never run)."""
        visits, found = self.depth_program().visits, 0
        for name, stack in params["params"]["blocks"].items():
            again = sum(visits[u] - 1 for u, kind in enumerate(self.unique_names()) if kind == name)
            found += again * sum(math.prod(a.shape[1:]) for a in jax.tree.leaves(stack))
        return found

    @nn.nowrap
    def sharding(self) -> tuple[tuple[str, tuple], ...]:
        """Rules for every parameter of this model: its own and those of its mixers."""
        rules = [rule for choice in self.mixers for rule in find("mixers", choice.name).SHARDING]
        return (*SHARDING, *dict.fromkeys(rules))

    @nn.nowrap
    def block(self, name: str) -> Block:
        """One layer around mixer `name`, detached: `block.apply({"params": layer}, x, ...)`."""
        mixer = _mixer(name, dict(dict(self.mixers)[name]), self.width, self.heads, self.dtype)
        return Block(
            mixer,
            self.width,
            ffn_width(self.width, self.ffn_multiple),
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            dtype=self.dtype,
            init_std=self.init_std,
            residual_scale=self.residual_scale,
            residual_coefficients=self.residual_coefficients,
            parent=None,
        )

    @nn.nowrap
    def projection(self) -> Projection:
        """The layer that follows an application, detached."""
        hidden = max(1, round(self.width * self.interleaved))
        return Projection(self.width, hidden, self.residual_coefficients, self.dtype, parent=None)

    def _embed(self, tokens: Array) -> Array:
        return constrain_rows(self.embedding.astype(self.dtype)[tokens])

    def _init_blocks(self, key: Array) -> dict[str, Any]:
        """{mixer: parameters of all its layers, stacked on a leading axis}."""
        x = jnp.zeros((1, 1, self.width), self.dtype)

        def stack(name: str, layers: int, key: Array) -> Any:
            block = self.block(name)
            return jax.vmap(lambda k: block.init(k, x)["params"])(jax.random.split(key, layers))

        counts = self.layer_counts()
        keys = jax.random.split(key, len(counts))
        params = {name: stack(name, counts[name], k) for name, k in zip(counts, keys, strict=True)}
        return _shrink_residual_outputs(params, len(self.depth_program())) if self.scaled_residual_init else params

    def _init_interleaved(self, key: Array) -> dict[str, Any]:
        """{mixer: parameters of the layers after its applications, stacked}."""
        x, names = jnp.zeros((1, 1, self.width), self.dtype), self.layer_names()
        keys = dict(zip(sorted(set(names)), jax.random.split(key, len(set(names))), strict=True))

        def stack(name: str) -> Any:
            each = jax.random.split(keys[name], names.count(name))
            return jax.vmap(lambda k: self.projection().init(k, x)["params"])(each)

        return {name: stack(name) for name in keys}

    def _through_blocks(
        self, call: Callable[..., Any], x: Array, states: State | None, remat: Callable[[Any], Any]
    ) -> tuple[Array, State | None]:
        """Runs every layer in order; `call(block, params, x, state, rngs, mutable)` applies one."""
        keys = None
        if self.dropout > 0 and self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), len(self.depth_program()))
        sown = ["intermediates"] if self.is_mutable_collection("intermediates") else []
        blocks, projection = {name: self.block(name) for name in self.layer_counts()}, self.projection()

        def layer(name, params, own, x, state, key):
            rngs = None if key is None else {"dropout": key}
            (x, state), extra = call(blocks[name], {"params": params}, x, state, rngs, sown)
            return x if own is None else projection.apply({"params": own}, x), {"state": state, **extra}

        program, layers = self.depth_program(), Layers(self.unique_names(), self.blocks)
        own = self.between
        x, out = run(layer, program, layers, x, own=own, states=states, keys=keys, remat=remat, unroll=self.unroll)
        for name in out:
            if "intermediates" in out[name] and not self.is_initializing():
                self.sow("intermediates", name, out[name]["intermediates"])
        return x, None if states is None else {name: out[name]["state"] for name in out}


def _shrink_residual_outputs(params: Any, depth: int) -> Any:
    """GPT-2: 2 L branches add to the residual stream, so their last kernels start 1 / sqrt(2 L) as large."""

    def scaled(path, a):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return a * (2 * depth) ** -0.5 if _RESIDUAL_OUTPUT.search(name) else a

    return jax.tree_util.tree_map_with_path(scaled, params)


def make(config: Any, vocab_size: int) -> LanguageModel:
    """The model that `config.model` and `config.mixers` describe.

    Args:
      config: ConfigDict or dict with the sections `model` (keys of DEFAULTS) and `mixers` ({name: options}).
      vocab_size: number of different tokens.

    Raises:
      ConfigError: see `check`.
    """
    check(config)
    options, pattern, chosen = _options(config)
    options["dtype"] = jnp.dtype(options["dtype"])
    return LanguageModel(vocab_size, chosen, pattern, **options)


def check(config: Any) -> None:
    """Raises ConfigError for options out of range, or that do not go together, such as heads that do not divide the width."""
    options, _, chosen = _options(config)
    hold(options, LIMITS, "config.model.")
    try:
        parse(options["program"], options["depth"])
    except ConfigError as error:
        raise ConfigError(f"config.model.program={error}") from None
    if options["dtype"] == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("config.model.dtype='float64': jax computes in float32 unless JAX_ENABLE_X64=1 is set")
    for name, mixer in chosen:
        made = _mixer(name, dict(mixer), options["width"], options["heads"], jnp.dtype(options["dtype"]))
        if hasattr(made, "check"):
            made.check()
        if hasattr(made, "out_width") and made.out_width() != options["width"]:
            raise ConfigError(
                f"config.mixers.{name}: it puts out {made.out_width()} channels, and the residual stream has"
                f" config.model.width={options['width']}; make them equal"
            )


def mixers_of(config: Any) -> set[str]:
    """Names of the mixers that `config` puts into the model. Raises ConfigError for one that there is not."""
    return set(_pattern(config["model"]["mixer"], config["model"]["hybrid"]))


def matmul_parameters(params: Any) -> int:
    """Number of parameters that every token is multiplied with: all but an input embedding that is not the head too."""
    own = params["params"]
    looked_up = math.prod(own["embedding"].shape) if "head" in own else 0
    return sum(math.prod(a.shape) for a in jax.tree.leaves(own)) - looked_up


def _options(config: Any) -> tuple[dict[str, Any], tuple[str, ...], tuple[MixerChoice, ...]]:
    """(fields of the model with defaults, pattern of mixers, their options)."""
    options = {**DEFAULTS, **{key: value for key, value in dict(config["model"]).items() if key in DEFAULTS}}
    pattern = _pattern(options.pop("mixer"), options.pop("hybrid"))
    sections = config.get("mixers", {})
    chosen = tuple(
        MixerChoice(name, tuple(dict(sections[name]).items()) if name in sections else ())
        for name in dict.fromkeys(pattern)
    )
    return options, pattern, chosen


def _pattern(mixer: str, hybrid: str) -> tuple[str, ...]:
    field, value = ("hybrid", hybrid) if hybrid else ("mixer", mixer)
    pattern = tuple(name.strip() for name in value.split(","))
    if not all(pattern):
        raise ConfigError(f"config.model.{field}={value!r}: say names of mixers with a comma between each two")
    for name in dict.fromkeys(pattern):
        try:
            find("mixers", name)
        except ConfigError as error:
            raise ConfigError(f"config.model.{field}={value!r}: {error}") from None
    return pattern


def _mixer(name: str, options: dict[str, Any], width: int, heads: int, dtype: DTypeLike) -> Any:
    try:
        return find("mixers", name).Mixer(width, heads, dtype, **options, parent=None)
    except TypeError as error:
        raise ConfigError(f"config.mixers.{name}: {str(error).partition(') ')[2] or error}") from None

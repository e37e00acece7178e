"""A stack of residual blocks run by a depth program: shared layers, what is each application's own, routers, caches.

It knows no mixer. `program` says which unique layer runs when; `Options` what differs between applications (LoRA, a step
embedding, a scale, a layer of its own after it) and whether a router sends only some tokens through the loops. A state is {kind:
states of the applications of that kind}, leaves [application, batch, ...]: caches are keyed by application. Behind a router it
also counts tokens, "time" [batch], since a cache that holds some of them cannot tell their positions.

    kv           what a later loop attends to                          caches
    recursion    the tokens that entered it                            one an application, with these tokens
    shared       keys and values of the first loop, all tokens         the first loop's alone
    update       the same, its own where it computed some              one an application, with all tokens

Sources: Universal Transformer (arXiv 1807.03819), SReT (2111.05297), Relaxed Recursive Transformers (2410.20672),
Mixture-of-Recursions (2507.10524).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.depth import routed, routers
from paperlab.depth.deltas import add_lora, zero_lora
from paperlab.depth.execute import Layers, places, run
from paperlab.depth.program import Program, chain
from paperlab.errors import ConfigError
from paperlab.layers.projection import Projection
from paperlab.layers.segments import document_starts, last_start
from paperlab.limits import above, at_least, hold, one_of

Tree = Any
ROUTERS = ("none", "expert", "token")
POLICIES = ("recursion", "shared", "update")
LIMITS = {
    "lora_rank": at_least(0, "0: none"),
    "interleaved": at_least(0, "hidden width; 0: none"),
    "router": one_of(*ROUTERS),
    "net": one_of(*routers.NETS),
    "score": one_of("sigmoid", "tanh", "softmax", "none"),
    "alpha": above(0),
    "temperature": above(0),
    "gating": one_of(*routed.GATING),
    "kv": one_of(*POLICIES),
}


@dataclass(frozen=True)
class Options:
    """What happens around the layers.

    Args:
      lora_rank: of a LoRA for every application, all linear maps (0: none); lora_scale.
      step_embedding: a vector of every application, added to its input; starts at 0.
      scale: a vector of every application, multiplied onto its output; starts at 1 ("recursion encoding").
      interleaved: hidden width of a residual perceptron after every application, unshared (0: none).
      router: "none", "expert" or "token"; net, score, alpha, temperature, gating: see `routers` and `routed`.
      capacity: share of the tokens that each loop takes (expert choice); evenly fewer if empty.
      kv: see above.
      sizes: numbers of tokens to choose from where the router's number is not known; the whole length if empty.
    """

    lora_rank: int = 0
    lora_scale: float = 1.0
    step_embedding: bool = False
    scale: bool = False
    interleaved: int = 0
    router: str = "none"
    net: str = "linear"
    score: str = "sigmoid"
    alpha: float = 0.1
    temperature: float = 1.0
    gating: str = "weighted"
    capacity: tuple[float, ...] = ()
    kv: str = "recursion"
    sizes: tuple[int, ...] = ()


class Recursive(nn.Module):
    """blocks: (kind, detached block) for every kind; kinds: of the unique layers. A block maps [B, T, D] to [B, T, D] and keeps the
    contract of layers/block.py: `__call__`, `step`, and for shared keys and values `memory`, `read` and `read_step`."""

    blocks: tuple[tuple[str, Any], ...]
    kinds: tuple[str, ...]
    program: Program
    width: int
    options: Options = Options()
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check(self.program, dict(self.blocks), self.options)
        self.layers = self.param("layers", self._init_layers)
        o = self.options
        if o.lora_rank or o.step_embedding or o.scale or o.interleaved:
            self.own = self.param("own", self._init_own)
        if self.options.router == "expert":
            self.routers = [routers.Router(1, self.options.net, self.dtype) for _ in range(self.program.times)]
        elif self.options.router == "token":
            self.routers = [routers.Router(self.program.times, self.options.net, self.dtype)]

    def __call__(
        self,
        x_BxTxD: Array,
        *,
        state: Mapping[str, Tree] | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        valid: Array | None = None,
        select: str = "topk",
        key: Array | None = None,
    ) -> tuple[Array, dict[str, Tree] | None, routed.Routed | None]:
        """x after the last application, the state (None where none was given) and what the router did.

        Args:
          select: how expert choice decides: "topk", "threshold" (causal) or "random". With a state: "threshold", by tokens.
          valid: bool [B, T], for the router: padding goes through no loop.
        """
        B, T, _ = x_BxTxD.shape
        if self.options.router == "none":
            x, outs = self._run(self.program, x_BxTxD, self._own(), state, segment_ids, positions)
            return x, outs if state is not None else None, None
        if state is not None:
            if segment_ids is not None:
                raise ConfigError("a routed stack reads a carried state token by token: give no segment_ids with it")
            return *self._token_by_token(x_BxTxD, state, positions), None
        positions = _positions(segment_ids, B, T) if positions is None else jnp.broadcast_to(positions, (B, T))
        before, inner, after = self._parts()
        own = self._own()
        x, _ = self._run(before, x_BxTxD, _part(own, self._slots(0, len(before))), None, segment_ids, positions)
        found = self._routed(inner, x, own, segment_ids, positions, valid, select, key)
        last = len(self.program) - len(after)
        x, _ = self._run(after, found.x, _part(own, self._slots(last, len(self.program))), None, segment_ids, positions)
        return x, None, found

    def step(self, x_BxD: Array, state: Mapping[str, Tree], position_B: Array | None = None) -> tuple[Array, dict]:
        """One token."""
        kept, found, routed_here = self._kept(), places(self.program, self.kinds), "time" in state
        if routed_here and position_B is None:
            position_B = state["time"]
        states: dict[tuple[str, int], Tree] = {(place.kind, kept[j]): None for j, place in enumerate(found)}
        for kind, slot in states:
            states[kind, slot] = jax.tree.map(lambda a, s=slot: a[s], state[kind])
        keys = [(place.kind, kept[j]) for j, place in enumerate(found)]
        before, inner, _ = self._parts() if self.options.router != "none" else ((), (), ())
        first, size = len(before), len(inner)
        last = first + size * (self.program.times if size else 0)
        x = self._through(range(first), x_BxD, states, keys, position_B)
        if size:
            x = self._routed_step(first, size, x, states, keys, position_B)
        x = self._through(range(last, len(found)), x, states, keys, position_B)
        after: dict[str, list] = {}
        for kind, slot in sorted(states, key=lambda key: key[1]):
            after.setdefault(kind, []).append(states[kind, slot])
        stacked = {kind: jax.tree.map(lambda *a: jnp.stack(a), *ones) for kind, ones in after.items()}
        return x, stacked | ({"time": state["time"] + 1} if routed_here else {})

    @nn.nowrap
    def zero_state(self, batch: int, max_len: int = 0, dtype: DTypeLike | None = None) -> dict[str, Tree]:
        """{kind: states}, one for every application that keeps a cache of its own."""
        found, kept = places(self.program, self.kinds), self._kept()
        counts = {kind: len({kept[j] for j, place in enumerate(found) if place.kind == kind}) for kind in self.kinds}

        def stacked(kind: str) -> Tree:
            one = dict(self.blocks)[kind].mixer.zero_state(batch, max_len, dtype or self.dtype)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (counts[kind], *a.shape)), one)

        time = {} if self.options.router == "none" else {"time": jnp.zeros((batch,), jnp.int32)}
        return {kind: stacked(kind) for kind in dict.fromkeys(self.kinds)} | time

    @nn.nowrap
    def _kept(self) -> list[int]:
        """Where the cache of each application lies among those of its kind; later loops share the first one's where kv="shared"."""
        found, place_of, counts = places(self.program, self.kinds), {}, dict.fromkeys(self.kinds, 0)
        kept = []
        for j, place in enumerate(found):
            shares = self.options.kv == "shared" and self.program.loops[j] > 0
            if not shares:
                place_of[place.kind, place.layer] = counts[place.kind]
                counts[place.kind] += 1
            kept.append(place_of[place.kind, place.layer])
        return kept

    def _init_layers(self, key: Array) -> dict[str, Tree]:
        x = jnp.zeros((1, 1, self.width), self.dtype)
        keys = jax.random.split(key, len(self.kinds))

        def stack(kind: str) -> Tree:
            mine = jnp.asarray([u for u, k in enumerate(self.kinds) if k == kind])
            return jax.vmap(lambda k: dict(self.blocks)[kind].init(k, x)["params"])(keys[mine])

        return {kind: stack(kind) for kind in dict.fromkeys(self.kinds)}

    def _init_own(self, key: Array) -> dict[str, Tree]:
        """{kind: {"lora", "step", "scale", "after"}}, stacked over the applications of that kind."""
        found, made = places(self.program, self.kinds), {}
        for kind in dict.fromkeys(self.kinds):
            n = sum(place.kind == kind for place in found)
            own: Tree = {}
            if self.options.lora_rank:
                one = jax.tree.map(lambda a: a[0], self.layers[kind])
                own["lora"] = zero_lora(key, one, self.options.lora_rank, lead=(n,))
            if self.options.step_embedding:
                own["step"] = jnp.zeros((n, self.width), jnp.float32)
            if self.options.scale:
                own["scale"] = jnp.ones((n, self.width), jnp.float32)
            if self.options.interleaved:
                x, keys = jnp.zeros((1, 1, self.width), self.dtype), jax.random.split(jax.random.fold_in(key, 1), n)
                own["after"] = jax.vmap(lambda k, x=x: self._projection().init(k, x)["params"])(keys)
            made[kind] = own
        return made

    @nn.nowrap
    def _projection(self) -> Projection:
        return Projection(self.width, self.options.interleaved, True, self.dtype, parent=None)

    @nn.nowrap
    def _left(self, own: Tree, y: Array) -> Array:
        """What an application leaves, from what its block puts out."""
        if own is None:
            return y
        y = y * own["scale"].astype(y.dtype) if "scale" in own else y
        return jnp.asarray(self._projection().apply({"params": own["after"]}, y)) if "after" in own else y

    def _own(self) -> dict[str, Tree] | None:
        return self.own if hasattr(self, "own") else None

    @nn.nowrap
    def _slots(self, start: int, stop: int) -> dict[str, list[int]]:
        """{kind: places among the applications of that kind} of some applications."""
        found = places(self.program, self.kinds)[start:stop]
        return {kind: [place.slot for place in found if place.kind == kind] for kind in dict.fromkeys(self.kinds)}

    @nn.nowrap
    def _parts(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        periods = self.program.periods
        assert periods is not None
        return periods.before, periods.block, periods.after

    def _run(self, which, x, own, states, segment_ids, positions, method=None, **more):
        """Some applications one after another, as a program of their own."""
        if not isinstance(which, Program):
            if not which:
                return x, {}
            which = chain(which, self.program.unique)
        blocks = dict(self.blocks)

        def layer(kind, params, own, x, state, key):
            del key
            x, weights = _entered(params, own, x, self.options)
            if method is None:
                y, after = blocks[kind].apply(
                    {"params": weights}, x, state=state, segment_ids=segment_ids, positions=positions
                )
            else:
                y, after = method(blocks[kind], weights, x, state)
            return self._left(own, y), after

        return run(layer, which, Layers(self.kinds, self.layers), x, own=own, states=states, **more)

    def _routed(self, inner, x, own, segment_ids, positions, valid, select, key):
        o, first = self.options, len(self._parts()[0])

        def block(r, x, index, there, memory):
            mine = _part(own, self._slots(first + r * len(inner), first + (r + 1) * len(inner)))
            if o.kv != "recursion":
                reader = _Reader(index, there, positions, segment_ids, o.kv == "update")
                return self._run(inner, x, mine, memory, None, None, method=reader)
            at = jnp.take_along_axis(positions, index, 1)
            segments = None if segment_ids is None else jnp.take_along_axis(segment_ids, index, 1)
            return self._run(inner, x, mine, None, segments, at)[0], None

        if o.router == "expert":
            return routed.expert_choice(
                block,
                lambda r, x: self.routers[r](x)[..., 0],
                x,
                capacity=o.capacity or routers.capacities(self.program.times),
                valid=valid,
                select=select,
                score=o.score,
                alpha=o.alpha,
                temperature=o.temperature,
                gating=o.gating,
                sizes=o.sizes,
                key=key,
            )
        logits = self.routers[0](x)
        return routed.token_choice(block, logits, x, valid=valid, score=o.score, alpha=o.alpha, sizes=o.sizes)

    def _through(self, applications, x, states, keys, position, method="step"):
        """Applications one after another on one token; `states` takes up what they leave."""
        own, found, blocks = self._own(), places(self.program, self.kinds), dict(self.blocks)
        for j in applications:
            place = found[j]
            mine = None if own is None else jax.tree.map(lambda a, s=place.slot: a[s], own[place.kind])
            params = jax.tree.map(lambda a, u=place.layer: a[u], self.layers[place.kind])
            x, weights = _entered(params, mine, x, self.options)
            y, new = blocks[place.kind].apply({"params": weights}, x, states[keys[j]], position, method=method)
            states[keys[j]] = new
            x = self._left(mine, y)
        return x

    def _routed_step(self, first, size, x, states, keys, position):
        o, times = self.options, self.program.times
        loops = [range(first + r * size, first + (r + 1) * size) for r in range(times)]

        def step(r, x, own, after):
            shares = o.kv == "shared" and r > 0
            mine = dict(zip([keys[j] for j in loops[r]], after[0] if shares else own, strict=True))
            y = self._through(loops[r], x, mine, keys, position, "read_step" if shares else "step")
            return y, [] if shares else [mine[keys[j]] for j in loops[r]]

        def skip(r, own, after):
            """What the loop before left of this token."""
            if o.kv != "update" or r == 0:
                return own
            blocks = dict(self.blocks)
            pairs = zip(loops[r], own, after[r - 1], strict=True)
            return [blocks[keys[j][0]].mixer.inherit(one, before) for j, one, before in pairs]

        given = [[] if o.kv == "shared" and r else [states[keys[j]] for j in loops[r]] for r in range(times)]
        if o.router == "expert":
            x, after, _ = routed.expert_step(
                step,
                lambda r, x: self.routers[r](x)[..., 0],
                x,
                given,
                first_takes_all=(o.capacity or (1.0,))[0] >= 1,
                score=o.score,
                alpha=o.alpha,
                temperature=o.temperature,
                gating=o.gating,
                skip=skip,
            )
        else:
            logits = self.routers[0](x)
            x, after, _ = routed.token_step(step, logits, x, given, score=o.score, alpha=o.alpha, skip=skip)
        for r, loop in enumerate(loops):
            for j, one in zip(loop, after[r], strict=False):
                states[keys[j]] = one
        return x

    def _token_by_token(self, x_BxTxD, state, positions):
        positions = None if positions is None else positions.T

        def one(state, now):
            x, position = now
            y, state = self.step(x, state, position)
            return state, y

        state, y = jax.lax.scan(one, dict(state), (x_BxTxD.swapaxes(0, 1), positions))
        return y.swapaxes(0, 1), state


class _Reader:
    """One block of a loop whose keys and values come from all tokens of the row."""

    def __init__(self, index, there, positions, segment_ids, writes):
        self.index, self.there, self.positions, self.segment_ids = index, there, positions, segment_ids
        self.writes = writes

    def __call__(self, block, weights, x, memory):
        at = jnp.take_along_axis(self.positions, self.index, 1)
        own = None
        if memory is None or self.writes:
            own = block.apply({"params": weights}, x, at, method="memory")
        if memory is None:
            length = self.positions.shape[1]
            memory = jax.tree.map(lambda a: jnp.zeros((a.shape[0], length, *a.shape[2:]), a.dtype), own)
        if own is not None:
            rows = jnp.arange(x.shape[0])[:, None]
            safe = jnp.where(self.there, self.index, self.positions.shape[1])
            memory = jax.tree.map(lambda m, a: m.at[rows, safe].set(a, mode="drop"), memory, own)
        more = {"positions": at, "times": self.index, "segment_ids": self.segment_ids}
        return block.apply({"params": weights}, x, memory, **more, method="read"), memory


def _entered(params: Tree, own: Tree, x: Array, options: Options) -> tuple[Array, Tree]:
    """What an application sees, and the weights it uses."""
    if own is None:
        return x, params
    if "step" in own:
        x = x + own["step"].astype(x.dtype)
    if "lora" in own:
        params = add_lora(params, own["lora"], options.lora_scale)
    return x, params


def _part(own: Mapping[str, Tree] | None, slots: Mapping[str, list[int]]) -> dict[str, Tree] | None:
    """What belongs to some applications."""
    if own is None:
        return None
    return {kind: jax.tree.map(lambda a, s=slots[kind]: a[jnp.asarray(s, int)], own[kind]) for kind in own}


def _positions(segment_ids: Array | None, B: int, T: int) -> Array:
    """Places counted from the start of each document."""
    time = jnp.broadcast_to(jnp.arange(T), (B, T))
    if segment_ids is None:
        return time
    return time - last_start(document_starts(segment_ids), time, jnp.zeros((B,), jnp.int32))


def check(
    program: Program, blocks: Mapping[str, Any], options: Options, where: str = "config.model.recursion."
) -> None:
    """Raises ConfigError for options out of range, or that this program or these mixers cannot have."""
    hold({name: getattr(options, name) for name in LIMITS}, LIMITS, where)
    if options.router == "none":
        if options.kv != "recursion":
            raise ConfigError(f"{where}kv={options.kv!r} is said of a routed stack: set router, or kv='recursion'")
        return
    if program.periods is None:
        raise ConfigError(
            f"{where}router={options.router!r} needs loops of equal blocks, such as program='middle_cycle:3'"
        )
    scores = {"expert": ("sigmoid", "tanh", "none"), "token": ("sigmoid", "softmax")}[options.router]
    if options.score not in scores:
        raise ConfigError(f"{where}score={options.score!r}: router={options.router!r} knows {' and '.join(scores)}")
    share = options.capacity
    if share and (
        len(share) != program.times or not all(0 < c <= 1 for c in share) or sorted(share)[::-1] != list(share)
    ):
        raise ConfigError(f"{where}capacity={share}: give {program.times} falling shares above 0, at most 1")
    if options.kv == "recursion":
        return
    without = [kind for kind, block in blocks.items() if not hasattr(block.mixer, "keys_values")]
    if without:
        raise ConfigError(
            f"{where}kv={options.kv!r}: mixer {without[0]!r} has no keys and values to share; take 'recursion'"
        )
    if share and share[0] < 1:
        raise ConfigError(
            f"{where}kv={options.kv!r}: the first loop makes the keys of all tokens, capacity must start with 1"
        )

"""Depth as a recurrence: one step, applied again and again to all positions.

    z = s + P(position) + P(step),   s <- Step(z)                     t = 1 .. T, the same weights each time

T is fixed, given for each row, or chosen by every position itself (`act`, paperlab.depth.halting). Untied steps are a Transformer
of T layers, so that a baseline shares every line. Untied layers may stand before and after.

A cache holds what each step saw at each position, apart for every step: step by step equals whole. Halted positions go on moving
and are attended to; with `freeze` they stay as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from paperlab.depth.halting import act
from paperlab.depth.program import Program, loop, plain
from paperlab.layers.linear import matmul
from paperlab.layers.norms import LayerNorm
from paperlab.models.lm import REMAT
from paperlab.papers.universal_transformer.attention import Sight
from paperlab.papers.universal_transformer.block import CELLS, NORM_EPS, Step
from paperlab.papers.universal_transformer.timing import FIRST, signal

Notes = dict[str, Array]


class Recurrence(nn.Module):
    """The fields of `options.DEFAULTS` that concern one side, encoder or decoder; `cross`: it attends to a memory."""

    width: int
    layer: tuple[tuple[str, Any], ...]
    steps: int = 6
    tied: bool = True
    inner_layers: int = 1
    before: int = 0
    after: int = 0
    recurrence: str = "basic"
    gate_inputs: str = "sti"
    own_carry: bool = False
    layout: str = "concatenated"
    position_signal: bool = True
    step_signal: str = "learned"
    signal_at: str = "step"
    signal_by: str = "add"
    position_start: str = "none"
    max_timescale: float = 10_000.0
    halting: str = "basic"
    halting_eps: float = 0.01
    halting_bias_init: float = 1.0
    halting_weight: float = 0.01
    freeze_halted: bool = False
    remat: str = "none"
    norm_eps: float = NORM_EPS
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        D, made = self.width, {}
        for part, (module, count) in self._parts().items():
            if count:
                made[part] = self.param(part, self._init_steps, module, count)
        self.weights = made
        if self._learned_steps():
            normal = nn.initializers.normal(D**-0.5)
            self.step_table = self.param("step_table", normal, (self.steps, D), jnp.float32)
        if self.signal_by == "concat":
            parts = 1 + self.position_signal + (self._steps_signalled() and self.signal_at == "step")
            self.combine = self.param("combine", nn.initializers.xavier_uniform(), (parts * D, D), jnp.float32)
        if self.recurrence == "dwa":
            self.depth_table = self.param(
                "depth_table", nn.initializers.normal(D**-0.5), (self.steps + 1, D), jnp.float32
            )
        if self.recurrence == "act":
            self.halting_kernel = self.param("halting_kernel", nn.initializers.xavier_uniform(), (D, 1), jnp.float32)
            constant = nn.initializers.constant(self.halting_bias_init)
            self.halting_bias = self.param("halting_bias", constant, (1,), jnp.float32)
        if dict(self.layer).get("norm") == "pre":
            self.final_norm = LayerNorm(self.norm_eps)

    def __call__(
        self,
        x_BxTxD: Array,
        sight: Sight,
        positions: Array,
        *,
        memory: Any = None,
        seen: Array | None = None,
        cache: Any = None,
        steps_B: Array | None = None,
        limit: int = 0,
        stop_early: bool = False,
    ) -> tuple[Array, Any, Notes]:
        """The state after the last step, the cache, and what there is to say about the steps.

        Args:
          x_BxTxD: embeddings.
          sight: who sees whom.
          positions: int [B, T] or [1, T], from 0.
          memory: `memory_keys` of what a decoder attends to; seen: its mask, bool [B, 1, S].
          cache: `zero_cache` or what the call before returned.
          steps_B: int32, the steps of every row; at most `steps`. None: all.
          limit: so many steps are run at most, whatever `steps` says, without a cache; 0: all.
          stop_early: with "act", end as soon as all positions have halted; not differentiable.

        Returns:
          state [B, T, D]; cache; notes {"steps": how many were run, "extra_loss" [B]: the row's mean of halting_weight (n + R), and
          with "act" "ponder" n and "remainder" R [B, T]}.

        Raises:
          ValueError: steps of each row, and "act", which has its own.
        """
        if steps_B is not None and self.recurrence == "act":
            raise ValueError("recurrence='act' chooses its own steps: leave out steps_B")
        if self.position_start == "random" and self.has_rng("positions"):
            offset = jax.random.randint(self.make_rng("positions"), (), 0, x_BxTxD.shape[1])
            positions = positions + offset
        keys = self.make_rng("dropout") if self.has_rng("dropout") else None
        around = {"sight": sight, "memory": memory, "seen": seen, "cache": cache, "keys": keys}
        after: dict[str, Any] = {}
        if self.signal_at == "input":
            x_BxTxD = self._signalled(x_BxTxD, positions, None, x_BxTxD.shape[1])
        x, after["first"] = self._plain(x_BxTxD, "first", around)
        if self.recurrence == "act":
            x, after["unit"], notes = self._halting(x, positions, around, stop_early)
        else:
            x, after["unit"] = self._fixed(x, positions, around, steps_B, min(limit or self.steps, self.steps))
            notes = {
                "steps": jnp.asarray(min(limit or self.steps, self.steps)),
                "extra_loss": jnp.zeros(x.shape[:1], jnp.float32),
            }
        x, after["last"] = self._plain(x, "last", around)
        if hasattr(self, "final_norm"):
            x = self.final_norm(x)
        return x, None if cache is None else after, notes

    def memory_keys(self, memory_BxSxD: Array) -> Any:
        """Keys and values of a memory, for every unique step."""
        made = {}
        for part, (module, count) in self._parts().items():
            if count:
                keys = lambda p, m=module: m.apply({"params": p}, memory_BxSxD, method="memory_keys")  # noqa: E731
                made[part] = jax.vmap(keys)(self.weights[part])
        return made

    @nn.nowrap
    def zero_cache(self, batch: int, slots: int, dtype: DTypeLike | None = None) -> Any:
        """Empty caches, stacked over applications."""

        def stacked(module: Step, count: int) -> Any:
            one = module.zero_cache(batch, slots, dtype or self.dtype)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), one)

        counts = {"first": self.before, "unit": self.steps, "last": self.after}
        return {
            part: stacked(module, counts[part]) if counts[part] else {} for part, (module, _) in self._parts().items()
        }

    @nn.nowrap
    def depth_program(self) -> Program:
        """Which unique layer runs when."""
        if not self.tied:
            return plain(self.before + self.steps * self.inner_layers + self.after)
        return loop(self.inner_layers, self.steps, before=self.before, after=self.after)

    @nn.nowrap
    def _parts(self) -> dict[str, tuple[Step, int]]:
        """{part: (its step, how many there are with weights of their own)}."""
        plain_step = Step(self.width, self.layer, norm_eps=self.norm_eps, dtype=self.dtype, parent=None)
        options = (*self.layer, ("attention_only", True)) if self.recurrence in CELLS else self.layer
        unit = Step(
            self.width,
            options,
            self.inner_layers,
            self.recurrence,
            self.gate_inputs,
            self.own_carry,
            self.norm_eps,
            self.dtype,
            parent=None,
        )
        return {
            "first": (plain_step, self.before),
            "unit": (unit, 1 if self.tied else self.steps),
            "last": (plain_step, self.after),
        }

    def _init_steps(self, key: Array, module: Step, count: int) -> Any:
        x = jnp.zeros((1, 2, self.width), self.dtype)

        def one(key: Array) -> Any:
            return module.init(key, x, method=_touch)["params"]

        return jax.vmap(one)(jax.random.split(key, count))

    def _steps_signalled(self) -> bool:
        return self.step_signal != "none" and self.recurrence not in CELLS

    def _learned_steps(self) -> bool:
        return self._steps_signalled() and self.step_signal == "learned" and self.signal_at == "step"

    def _signalled(self, x: Array, positions: Array, t: Any, T: int) -> Array:
        """x with the signals of positions and, at a step, of its number."""
        parts, first = [], FIRST[self.layout]
        kind = partial(signal, channels=self.width, layout=self.layout, max_timescale=self.max_timescale, dtype=x.dtype)
        if self.position_signal:
            if self.position_start == "step" and t is not None:
                positions = positions + T * t // self.steps
            parts.append(kind(positions + first))
        if t is not None and self._learned_steps():
            parts.append((self.step_table[t] * self.width**0.5).astype(x.dtype))
        elif t is not None and self._steps_signalled():
            parts.append(kind(jnp.asarray(t) + first))
        if self.signal_by == "add":
            return sum(parts, x)
        wide = [jnp.broadcast_to(part, x.shape) for part in parts]
        return matmul(jnp.concatenate([x, *wide], -1), self.combine.astype(x.dtype))

    def _at_step(self, x: Array, positions: Array, t: Any) -> Array:
        return self._signalled(x, positions, t, x.shape[1]) if self.signal_at == "step" else x

    def _plain(self, x: Array, part: str, around: dict) -> tuple[Array, Any]:
        """Layers with weights of their own, before or after the recurrence."""
        module, count = self._parts()[part]
        if not count:
            return x, {}
        memory, cache = ((around[name] or {}).get(part) for name in ("memory", "cache"))
        key = None if around["keys"] is None else jax.random.fold_in(around["keys"], 1 + (part == "last"))

        def body(x: Array, now: tuple) -> tuple[Array, Any]:
            n, params, memory, cache = now
            apply = _applied(module, params, around, memory, key, n)
            carry, cache = apply({"s": x}, x, x, n, cache)
            return carry["s"], cache

        return lax.scan(REMAT[self.remat](body), x, (jnp.arange(count), self.weights[part], memory, cache))

    def _fixed(self, i: Array, positions: Array, around: dict, steps_B: Array | None, T: int) -> tuple[Array, Any]:
        """T steps, or those of each row."""
        module, _ = self._parts()["unit"]
        memory, cache = ((around[name] or {}).get("unit") for name in ("memory", "cache"))
        key = None if around["keys"] is None else jax.random.fold_in(around["keys"], 0)
        tree = (self.weights["unit"], memory)
        own, shared = (None, jax.tree.map(lambda a: a[0], tree)) if self.tied else (tree, None)

        def body(carry: dict, now: tuple) -> tuple[dict, Any]:
            t, own, cache = now
            params, memory = own if shared is None else shared
            apply = _applied(module, params, around, memory, key, t)
            if self.recurrence == "dwa":
                mix = lambda m: m.mix(carry["states"], self.depth_table, t + 1)  # noqa: E731
                z = nn.apply(mix, module)({"params": params})
            else:
                z = carry["s"]
            new, cache = apply(carry, self._at_step(z, positions, t), i, t, cache)
            if self.recurrence == "dwa":
                new["states"] = lax.dynamic_update_index_in_dim(carry["states"], new["s"], t + 1, 0)
            if steps_B is not None:
                goes = (t < steps_B)[:, None, None]
                new = {**new, **{n: jnp.where(goes, new[n], carry[n]) for n in ("s", "m") if n in new}}
            return new, cache

        carry = {"s": i}
        if self.recurrence == "lstm":
            carry["m"] = jnp.zeros_like(i)
        if self.recurrence == "dwa":
            carry["states"] = jnp.zeros((self.steps + 1, *i.shape), i.dtype).at[0].set(i)
        carry, cache = lax.scan(
            REMAT[self.remat](body), carry, (jnp.arange(T), jax.tree.map(lambda a: a[:T], own), cache)
        )
        return carry["s"], cache

    def _halting(self, x: Array, positions: Array, around: dict, stop_early: bool) -> tuple[Array, Any, Notes]:
        """Every position decides when it has had enough."""
        module, _ = self._parts()["unit"]
        memory, cache = ((around[name] or {}).get("unit") for name in ("memory", "cache"))
        key = None if around["keys"] is None else jax.random.fold_in(around["keys"], 0)
        kernel, bias = self.halting_kernel.astype(x.dtype), self.halting_bias.astype(x.dtype)

        def step(t: Array, s: Array, cache: Any = None) -> tuple[Array, ...]:
            params, mem = jax.tree.map(lambda a: a[0 if self.tied else t], (self.weights["unit"], memory))
            z = self._at_step(s, positions, t)
            p = jax.nn.sigmoid((matmul(z, kernel) + bias)[..., 0])
            carry, cache = _applied(module, params, around, mem, key, t)({"s": s}, z, s, t, cache)
            return carry["s"], p, cache

        sight = around["sight"]
        halted = act(
            step,
            x,
            max_steps=self.steps,
            kind=self.halting,
            eps=self.halting_eps,
            freeze=self.freeze_halted,
            loop="while" if stop_early and cache is None else "scan",
            valid=sight.valid,
            key=self.make_rng("halting") if self.has_rng("halting") else jax.random.key(0),
            own=cache,
            remat=REMAT[self.remat],
        )
        there = jnp.ones(x.shape[:2], bool) if sight.valid is None else sight.valid
        mean = (halted.ponder * there).sum(1) / jnp.maximum(there.sum(1), 1)
        notes = {"steps": halted.steps, "ponder": halted.updates, "remainder": halted.remainder}
        return halted.output, halted.own, {**notes, "extra_loss": self.halting_weight * mean}


def _applied(module: Step, params: Any, around: dict, memory: Any, key: Array | None, t: Any) -> Callable[..., Any]:
    """One step with its weights: (carry, z, i, t, cache) -> (carry, cache)."""
    rngs = None if key is None else {"dropout": jax.random.fold_in(key, t)}

    def apply(carry: dict, z: Array, i: Array, t: Any, cache: Any) -> tuple[dict, Any]:
        sight, seen = around["sight"], around["seen"]
        return module.apply({"params": params}, carry, z, i, t, sight, memory, seen, cache, rngs=rngs)

    return apply


def _touch(step: Step, x: Array) -> None:
    """Makes every parameter of a step."""
    memory = step.memory_keys(x) if dict(step.options).get("cross") else None
    carry = {"s": x, "m": x} if step.recurrence == "lstm" else {"s": x}
    step(carry, x, x, jnp.asarray(0), Sight(), memory)
    if step.recurrence == "dwa":
        step.mix(x[None], jnp.zeros((1, step.width)), jnp.asarray(1))

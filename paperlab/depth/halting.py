"""Adaptive computation time: every position decides for itself how often a step is applied.

At step t a position that is still running emits p_t; it halts where its sum would pass 1 - eps, and gives the step that halts it
the remainder of 1:

    u_t = p_t while running,  R = 1 - sum of earlier p  at the halting step,  0 afterwards

    kind           y                                     what it is
    accumulated    sum_t u_t s_t                         a convex combination where the position halted in time
    basic          y <- u_t s_t + (1 - u_t) y            the Universal Transformer's code: an interpolation
    global         as basic                              one decision a sequence, from the mean of p
    random         as basic                              p drawn from U(0, 1)
    graves         sum_t w_t s_t                         remainder also at the last step, so that weights always sum to 1

s_t is the state after step t; it goes on for all positions, unless `freeze` copies the state of a halted one onward. The ponder
cost is n + R: steps and remainder.

`loop="while"` stops as soon as no position runs, `loop="scan"` takes all steps with nothing left to change, and can be
differentiated; both give the same numbers.

Sources: Graves (arXiv 1603.08983); Universal Transformer (1807.03819, section 2.2 and the authors' code).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

KINDS = ("accumulated", "basic", "global", "random", "graves")
LOOPS = ("scan", "while")
Step = Callable[..., tuple[Any, ...]]


class Halted(NamedTuple):
    """output [B, T, D]; updates n and remainder R [B, T] float32; probability [B, T], the sum of p and remainder; halted [B, T]
    bool; steps: how many were needed, a number; weights: [steps, B, T], only where they were asked for; own: what the steps
    returned beside their state, stacked over them.
    """

    output: Array
    updates: Array
    remainder: Array
    probability: Array
    halted: Array
    steps: Array
    weights: Array | None = None
    own: Any = None

    @property
    def ponder(self) -> Array:
        """n + R, [B, T]: what a ponder loss is the mean of; only R has a gradient."""
        return self.updates + self.remainder


class _Carry(NamedTuple):
    s: Array
    y: Array
    updates: Array
    remainder: Array
    probability: Array
    running: Array
    t: Array


def act(
    step: Step,
    state_BxTxD: Array,
    *,
    max_steps: int,
    kind: str = "accumulated",
    eps: float = 0.01,
    freeze: bool = False,
    loop: str = "scan",
    valid: Array | None = None,
    key: Array | None = None,
    keep_weights: bool = False,
    own: Any = None,
    remat: Callable[[Any], Any] = lambda body: body,
) -> Halted:
    """Applies `step` until every position has halted, or `max_steps` times.

    Args:
      step: (t, s [B, T, D]) -> (the state after this step, p [B, T] in 0..1 from the state before it).
      state_BxTxD: the state before the first step.
      max_steps: N_max.
      kind: see above.
      eps: a position halts where h + p > 1 - eps ("graves": >=).
      freeze: a halted position keeps its state, as the paper's text has it; else it moves on and is attended to as it moves.
      loop: "scan" or "while".
      valid: bool [B, T]; positions that are padding neither run nor count.
      key: for "random".
      keep_weights: return the weight of every step; "scan" only.
      own: what belongs to each step, such as its cache, stacked over steps; `step` is then (t, s, own) -> (state, p, own), and
        takes all `max_steps` steps, since the caches of later positions need them. "scan" only.
      remat: wraps the body of the scan.

    Raises:
      ValueError: unknown kind or loop, no step to take, "random" without a key, weights or caches of a while loop.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    if loop not in LOOPS:
        raise ValueError(f"loop={loop!r}: choose one of {', '.join(LOOPS)}")
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: must be at least 1")
    if kind == "random" and key is None:
        raise ValueError("kind='random' needs a key")
    if (keep_weights or own is not None) and loop == "while":
        raise ValueError("keep_weights and own need loop='scan': a while loop has no fixed number of steps")
    shape = state_BxTxD.shape[:-1]
    wide = jnp.promote_types(state_BxTxD.dtype, jnp.float32)
    mask = jnp.ones(shape, bool) if valid is None else valid

    def body(c: _Carry, own: Any) -> tuple[_Carry, Array, Any]:
        after, p, *kept = step(c.t, c.s) if own is None else step(c.t, c.s, own)
        p = p.astype(wide)
        if key is not None and kind == "random":
            p = jax.random.uniform(jax.random.fold_in(key, c.t), shape, wide)
        elif kind == "global":
            p = jnp.broadcast_to(_mean(p, mask), shape)
        return *_advance(c, after, p, kind, eps, max_steps, freeze), kept[0] if kept else None

    zeros = jnp.zeros(shape, wide)
    carry = _Carry(state_BxTxD, jnp.zeros(state_BxTxD.shape, wide), zeros, zeros, zeros, mask, jnp.zeros((), jnp.int32))
    weights = None
    if loop == "while":
        more = lambda c: c.running.any() & (c.t < max_steps)  # noqa: E731
        carry = lax.while_loop(more, lambda c: body(c, None)[0], carry)
        steps = carry.t
    else:

        def scanned(c: _Carry, own: Any) -> tuple[_Carry, tuple[Array, Array, Any]]:
            new, u, kept = body(c, own)
            return new, (c.running.any(), u, kept)

        carry, (went, us, own) = lax.scan(remat(scanned), carry, own, length=max_steps)
        steps, weights = went.sum(), us if keep_weights else None
    y = carry.y.astype(state_BxTxD.dtype)
    halted = mask & ~carry.running
    return Halted(y, carry.updates, carry.remainder, carry.probability, halted, steps, weights, own)


def _advance(
    c: _Carry, after: Array, p: Array, kind: str, eps: float, max_steps: int, freeze: bool
) -> tuple[_Carry, Array]:
    """One step of the bookkeeping; also the weight u of this step."""
    full = c.probability + p
    if kind == "graves":
        halts = c.running & ((full >= 1 - eps) | (c.t + 1 >= max_steps))
    else:
        halts = c.running & (full > 1 - eps)
    goes = c.running & ~halts
    rest = 1 - c.probability
    u = jnp.where(halts, rest, jnp.where(goes, p, 0))
    w = u[..., None]
    y = c.y + w * after if kind in ("accumulated", "graves") else w * after + (1 - w) * c.y
    moved = jnp.where(c.running[..., None], after, c.s) if freeze else after
    return _Carry(
        moved.astype(c.s.dtype),
        y.astype(c.y.dtype),
        c.updates + c.running,
        c.remainder + jnp.where(halts, rest, 0),
        jnp.where(halts, 1, c.probability + jnp.where(goes, p, 0)),
        goes,
        c.t + 1,
    ), u


def _mean(p: Array, mask: Array) -> Array:
    return (p * mask).sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1)

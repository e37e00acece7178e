"""Runs a block again and again on ever fewer tokens: gather, run, scatter; every token keeps its position.

    expert choice    x_t <- x_t + g_t block_r(x)_t    for the tokens that recursion r takes
    token choice     h_t <- block_r(h)_t              while r <= depth_t;      x_t <- x_t + p_t h_t at the end

Only what is taken is computed: top-k has a fixed number; elsewhere the number is not known beforehand, and the smallest of a few
`sizes` that holds all of them is run (`lax.switch`). Tokens not taken come last in what the block sees, so that a causal
block lets them change nothing.

The block is any function `block(r, x_BxkxD, index_Bxk, there_Bxk, memory) -> (y_BxkxD, memory)`; index says which tokens these are,
`there` which places hold one, memory is what recursion r leaves to the next one (keys and values that are shared, or None).

Source: Mixture-of-Recursions (arXiv 2507.10524, section 2.2, and the authors' code).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from paperlab.depth import routers

Block = Callable[[int, Array, Array, Array, Any], tuple[Array, Any]]
Step = Callable[[int, Array, Any, list], tuple[Array, Any]]
Skip = Callable[[int, Any, list], Any]
SELECT = ("topk", "threshold", "random")
GATING = ("weighted", "additive")


class Routed(NamedTuple):
    """x [B, T, D]; taken: bool [R, B, T], which tokens each recursion had; logits [R, B, T]; losses and metrics by name."""

    x: Array
    taken: Array
    logits: Array
    losses: dict[str, Array]
    metrics: dict[str, Array]


def take(x_BxTx: Array, index_Bxk: Array) -> Array:
    """Rows of the second axis: [B, T, ...] -> [B, k, ...]."""
    return jnp.take_along_axis(x_BxTx, index_Bxk.reshape(*index_Bxk.shape, *(1,) * (x_BxTx.ndim - 2)), axis=1)


def put(x_BxTxD: Array, index_Bxk: Array, y_BxkxD: Array, there_Bxk: Array, *, add: bool) -> Array:
    """The inverse of `take`, where `there`; other tokens stay as they are."""
    rows = jnp.arange(x_BxTxD.shape[0])[:, None]
    safe = jnp.where(there_Bxk, index_Bxk, x_BxTxD.shape[1])
    at = x_BxTxD.at[rows, safe]
    y = y_BxkxD.astype(x_BxTxD.dtype)
    return at.add(y, mode="drop") if add else at.set(y, mode="drop")


def expert_choice(
    block: Block,
    logit: Callable[[int, Array], Array],
    x_BxTxD: Array,
    *,
    capacity: Sequence[float],
    valid: Array | None = None,
    select: str = "topk",
    score: str = "sigmoid",
    alpha: float = 0.1,
    temperature: float = 1.0,
    gating: str = "weighted",
    sizes: Sequence[int] = (),
    key: Array | None = None,
    decide: Callable[[int, Array], Array] | None = None,
) -> Routed:
    """Every recursion takes its best tokens among those of the one before.

    Args:
      block: see above; causal where `select` is "threshold".
      logit: (r, x [B, k, D]) -> router logits [B, k] from the input of recursion r.
      capacity: c_r, as `routers.capacities` gives it.
      valid: bool [B, T]; padding is never taken, and a row's k_r counts its valid tokens.
      select: "topk" looks at the whole sequence, "threshold" (logit > 0; the first recursion takes all where c_0 = 1) is
        causal, "random" is the ablation's.
      score, alpha, temperature: of the gate g (`routers.gate`).
      gating: "weighted" adds g y, "additive" y.
      sizes: lengths to choose from where the number of tokens is not known; the whole length if omitted.
      key: for "random".
      decide: (r, x) -> logits of a separate router that decides under "threshold" and is taught instead (the "aux router").

    Returns:
      Routed. losses: "agreement" and "z", summed over recursions. metrics: "sampling_accuracy", "dead" (share of positions that
      the last recursion takes in no row), "depth" (mean number of recursions), "entropy" of the gates (nats).

    Raises:
      ValueError: an option that there is not.
    """
    _check(("select", select, SELECT), ("gating", gating, GATING))
    B, T, _ = x_BxTxD.shape
    if select == "random" and key is None:
        raise ValueError("select='random' needs a key")
    active = jnp.ones((B, T), bool) if valid is None else valid
    every, memory, x = active, None, x_BxTxD
    k = routers.counts(T, tuple(capacity))
    index, there = routers.best(jnp.zeros((B, T)), active, T)
    takens, logits, losses, accuracies = [], [], [], []
    for r, c in enumerate(capacity):
        seen = take(x, index)
        z_own = logit(r, seen)
        z = jnp.full((B, T), -jnp.inf).at[jnp.arange(B)[:, None], jnp.where(there, index, T)].set(z_own, mode="drop")
        judged = z if decide is None else _spread(decide(r, lax.stop_gradient(seen)), index, there, T)
        g = routers.gate(jnp.where(active, z, 0), score, alpha, temperature)
        if select == "threshold":
            taken = active if c >= 1 and r == 0 else active & (judged > 0)
            y, memory = _on_some(block, r, x, taken, memory, sizes if r else ())
            x_new = x + jnp.where(taken[..., None], (g[..., None] if gating == "weighted" else 1) * y, 0)
        else:
            ranked = g if key is None or select == "topk" else jax.random.uniform(jax.random.fold_in(key, r), (B, T))
            k_B = jnp.maximum(jnp.floor(c * every.sum(1) + 1e-6), 1).astype(jnp.int32)
            new, there_new = routers.best(ranked, active, k[r], jnp.minimum(k_B, k[r]))
            y, memory = block(r, take(x, new), new, there_new, memory)
            weight = take(g, new)[..., None] if gating == "weighted" else jnp.ones(())
            x_new = put(x, new, weight * y, there_new, add=True)
            taken = (
                jnp.zeros((B, T), bool).at[jnp.arange(B)[:, None], jnp.where(there_new, new, T)].set(True, mode="drop")
            )
        agreed = routers.agreement(jnp.where(active, judged, 0), taken, active)
        losses.append((agreed.loss, routers.z_loss(jnp.where(active, z, 0)[..., None], active)))
        accuracies.append(agreed.accuracy)
        x = x_new.astype(x.dtype)
        takens.append(taken)
        logits.append(jnp.where(active, z, 0))
        active = taken
        index, there = routers.best(jnp.zeros((B, T)), active, T if select == "threshold" else k[r])
    taken, all_logits = jnp.stack(takens), jnp.stack(logits)
    return Routed(
        x,
        taken,
        all_logits,
        {"agreement": sum(a for a, _ in losses), "z": sum(z for _, z in losses)},  # type: ignore[dict-item]
        {"sampling_accuracy": jnp.stack(accuracies).mean(), **_loads(taken, every)},
    )


def token_choice(
    block: Block,
    logits_BxTxR: Array,
    x_BxTxD: Array,
    *,
    valid: Array | None = None,
    score: str = "softmax",
    alpha: float = 1.0,
    bias: Array | None = None,
    sizes: Sequence[int] = (),
    full_depth: Array | bool = False,
) -> Routed:
    """Every token goes as deep as its best score says; nothing looks ahead.

    Args:
      block: see above, causal.
      logits_BxTxR: of the router at the first recursion's input.
      valid: bool [B, T]; padding goes nowhere.
      score, alpha: p = alpha softmax(z) or alpha sigmoid(z).
      bias: [R], added where the depth is chosen and nowhere else (loss-free balancing).
      sizes: lengths to choose from; the whole length if omitted.
      full_depth: every token goes through all recursions (warm-up).

    Returns:
      Routed. losses: "balance" and "z". metrics: "violation", "ratio" [R], "depth", "dead".

    Raises:
      ValueError: an option that there is not.
    """
    _check(("score", score, ("softmax", "sigmoid")))
    B, T, R = logits_BxTxR.shape
    every = jnp.ones((B, T), bool) if valid is None else valid
    p = alpha * (jax.nn.softmax(logits_BxTxR) if score == "softmax" else jax.nn.sigmoid(logits_BxTxR))
    depth = jnp.argmax(p if bias is None else p + bias, -1)
    depth = jnp.where(full_depth, R - 1, depth)
    h, memory, takens = x_BxTxD, None, []
    for r in range(R):
        taken = every & (depth >= r)
        y, memory = _on_some(block, r, h, taken, memory, sizes if r else ())
        h = jnp.where(taken[..., None], y, h).astype(x_BxTxD.dtype)
        takens.append(taken)
    weight = jnp.take_along_axis(p, depth[..., None], -1)
    x = x_BxTxD + jnp.where(every[..., None], weight * h, 0).astype(x_BxTxD.dtype)
    balanced = routers.balance(p, depth, every)
    taken = jnp.stack(takens)
    return Routed(
        x,
        taken,
        jnp.moveaxis(logits_BxTxR, -1, 0),
        {"balance": balanced.loss, "z": routers.z_loss(logits_BxTxR, every)},
        {"violation": balanced.violation, "ratio": balanced.ratio, **_loads(taken, every)},
    )


def expert_step(
    step: Step,
    logit: Callable[[int, Array], Array],
    x_BxD: Array,
    states: Sequence[Any],
    *,
    first_takes_all: bool = True,
    score: str = "sigmoid",
    alpha: float = 0.1,
    temperature: float = 1.0,
    gating: str = "weighted",
    decide: Callable[[int, Array], Array] | None = None,
    skip: Skip | None = None,
    rows: int = 0,
) -> tuple[Array, list[Any], Array]:
    """One token of `expert_choice(select="threshold")`: a recursion that no row enters is not computed.

    Args:
      step: (r, x [B, D], state of recursion r, new states of those before) -> (y, state).
      states: one a recursion.
      skip: (r, state, new states of those before) -> the state of a row that did not enter; as it was if omitted.
      rows: the axis of the rows in every leaf of a state; 1 behind an axis of stacked layers.

    Returns:
      x [B, D], the states, taken bool [R, B].
    """
    active, x = jnp.ones(x_BxD.shape[:1], bool), x_BxD
    after: list[Any] = []
    takens = []
    for r, state in enumerate(states):
        z = logit(r, x)
        judged = z if decide is None else decide(r, x)
        active = active if first_takes_all and r == 0 else active & (judged > 0)
        y = _enter(step, skip, r, x, state, active, after, rows)
        g = routers.gate(z, score, alpha, temperature)[:, None] if gating == "weighted" else 1
        x = (x + jnp.where(active[:, None], g * y, 0)).astype(x.dtype)
        takens.append(active)
    return x, after, jnp.stack(takens)


def token_step(
    step: Step,
    logits_BxR: Array,
    x_BxD: Array,
    states: Sequence[Any],
    *,
    score: str = "softmax",
    alpha: float = 1.0,
    bias: Array | None = None,
    skip: Skip | None = None,
    rows: int = 0,
) -> tuple[Array, list[Any], Array]:
    """One token of `token_choice`; as `expert_step`."""
    p = alpha * (jax.nn.softmax(logits_BxR) if score == "softmax" else jax.nn.sigmoid(logits_BxR))
    depth = jnp.argmax(p if bias is None else p + bias, -1)
    after: list[Any] = []
    h, takens = x_BxD, []
    for r, state in enumerate(states):
        taken = depth >= r
        y = _enter(step, skip, r, h, state, taken, after, rows)
        h = jnp.where(taken[:, None], y, h).astype(x_BxD.dtype)
        takens.append(taken)
    weight = jnp.take_along_axis(p, depth[:, None], -1)
    return (x_BxD + weight * h).astype(x_BxD.dtype), after, jnp.stack(takens)


def _enter(
    step: Step, skip: Skip | None, r: int, x: Array, state: Any, taken: Array, after: list[Any], rows: int
) -> Array:
    """`step` where some row is taken, else nothing is computed; appends the new state."""
    untouched = state if skip is None else skip(r, state, after)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(taken.reshape(*(1,) * rows, -1, *(1,) * (new.ndim - rows - 1)), new, old)

    def run(_: None) -> tuple[Array, Any]:
        y, new = step(r, x, state, after)
        return y.astype(x.dtype), jax.tree.map(choose, new, untouched)

    y, new = lax.cond(taken.any(), run, lambda _: (jnp.zeros_like(x), untouched), None)
    after.append(new)
    return y


def _on_some(block: Block, r: int, x: Array, taken: Array, memory: Any, sizes: Sequence[int]) -> tuple[Array, Any]:
    """`block` on the tokens taken, [B, T, D] with zeros elsewhere."""
    T = x.shape[1]
    sizes = sorted({min(n, T) for n in sizes} | {T})
    index, there = routers.best(jnp.zeros(taken.shape), taken, T)

    def of(k: int) -> Callable[[None], tuple[Array, Any]]:
        def run(_: None) -> tuple[Array, Any]:
            some = index[:, :k]
            y, new = block(r, take(x, some), some, there[:, :k], memory)
            return put(jnp.zeros_like(x), some, y, there[:, :k], add=False), new

        return run

    if len(sizes) == 1:
        return of(T)(None)
    smallest = jnp.searchsorted(jnp.asarray(sizes), taken.sum(1).max())
    return lax.switch(smallest, [of(k) for k in sizes], None)


def _spread(values: Array, index: Array, there: Array, T: int) -> Array:
    B = values.shape[0]
    return jnp.full((B, T), -jnp.inf).at[jnp.arange(B)[:, None], jnp.where(there, index, T)].set(values, mode="drop")


def _loads(taken: Array, every: Array) -> dict[str, Array]:
    """Mean number of recursions a token, and the share of positions that the last recursion takes in no row."""
    depth = taken.sum() / jnp.maximum(every.sum(), 1)
    dead = (~taken[-1].any(0) & every.any(0)).sum() / jnp.maximum(every.any(0).sum(), 1)
    return {"depth": depth, "dead": dead}


def _check(*options: tuple[str, str, tuple[str, ...]]) -> None:
    for name, value, known in options:
        if value not in known:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}")

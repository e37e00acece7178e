"""pLSTM's memory on a grid: every order of evaluation, beside the paper's own JAX version where a checkout of it is named.

[N, side, side] grids, N being images times heads, key and value of D channels; "forward", or "both": the value and the gradients of
q, k, v and all gates. `mode` P has four turns, D three. "core" is one direction; "four" is the sum of four with one result, as the
vision layer needs it. `PAPERLAB_PLSTM` names a checkout of ml-jku/plstm, whose functions `pLSTM2D_jax` (all levels merged, and
merged to half as many) and `pLSTM2D_parallel_fused_jax` then take their turns on the same arrays; results must agree, or nothing is
reported. Its layers, which need another version of flax, are not imported.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.bench.record import Aim, Options, Row
from paperlab.bench.timing import Samples, interleaved, median, ratio
from paperlab.errors import ConfigError
from paperlab.papers.plstm.directions import read_grid
from paperlab.recurrence.grid import Gates, grid_memory

# (what, mode, N, side, D): widths of a head in the paper's tiny model (64) and in small ones.
CASES = (
    ("core", "P", 24, 8, 64),
    ("core", "P", 24, 8, 16),
    ("core", "P", 24, 16, 64),
    ("core", "D", 24, 16, 64),
    ("core", "P", 24, 16, 16),
    ("core", "P", 4, 32, 64),
    ("core", "P", 4, 32, 16),
    ("four", "P", 12, 8, 64),
    ("four", "P", 12, 16, 64),
    ("four", "D", 12, 16, 64),
)
QUICK = (("core", "P", 2, 4, 4), ("four", "D", 2, 4, 4))
SLOW = 256  # nodes; beyond, node after node takes no turns
TOLERANCE = 2e-5
CHECKOUT = "PAPERLAB_PLSTM"
MOST_ROUNDS, SECONDS = 15, 10


def rows(options: Options) -> Iterable[Row]:
    """One row a case and pass."""
    theirs = peer(os.environ.get(CHECKOUT, ""))
    for case in QUICK if options.quick else CASES:
        for which in ("forward", "both"):
            yield _row(*case, which, theirs, options.quick)


def peer(checkout: str) -> ModuleType | None:
    """The module of ml-jku/plstm that holds the two-dimensional core; None where no checkout is named.

    Raises:
      ConfigError: what is named is not a checkout of it.
    """
    if not checkout:
        return None
    root = Path(checkout) / "src" / "plstm"
    if not (root / "nnx" / "plstm_2d.py").is_file():
        raise ConfigError(f"{CHECKOUT}={checkout}: holds no src/plstm/nnx/plstm_2d.py; name a checkout of ml-jku/plstm")
    for name, path in (("plstm", root), ("plstm.nnx", root / "nnx")):  # the packages without what they import
        package = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules.setdefault(name, package)
    return importlib.import_module("plstm.nnx.plstm_2d")


def _row(what: str, mode: str, N: int, side: int, D: int, which: str, theirs: ModuleType | None, quick: bool) -> Row:
    arguments, weight = drawn(what, mode, N, side, D)
    functions = ours(what, side) | ({} if theirs is None else _theirs(theirs, what, side))
    calls = {label: _compiled(function, which, arguments, weight) for label, function in functions.items()}
    difference = _difference({label: call() for label, call in calls.items()})
    once = interleaved(calls, rounds=1, warmup=0)
    rounds = 2 if quick else max(3, min(MOST_ROUNDS, int(1e3 * SECONDS / sum(map(median, once.values())))))
    samples = interleaved(calls, rounds=rounds, warmup=0)
    case = {"what": what, "mode": mode, "N": N, "side": side, "D": D, "dtype": "float32", "pass": which}
    return Row(case, samples, {"largest_relative_difference": difference, **_ratios(samples)})


def drawn(what: str, mode: str, N: int, side: int, D: int) -> tuple[tuple, jax.Array]:
    """((q, k, v, gates, direct), cotangent): gates of the paper's modes, [N, side, side, ...] or [N, 4, side, side, ...]."""
    rng = np.random.default_rng(0)
    lead = (N, 4) if what == "four" else (N,)

    def uniform(*shape: int) -> jax.Array:
        return jnp.asarray(rng.uniform(size=shape), jnp.float32)

    source, mark_l, mark_u = (uniform(*lead, side, side, 1, 1, 1) for _ in range(3))
    angle, decay = uniform(*lead, side, side, 1, 1), uniform(*lead, side, side, 1, 1)
    right, down = (decay * angle, decay * (1 - angle)) if mode == "P" else (decay, decay)
    gates = Gates(source, 1 - source, right, right, down if mode == "P" else None, down, mark_l, mark_u)
    q, k, v, weight = (jnp.asarray(rng.normal(size=(N, side, side, D, 1)), jnp.float32) for _ in range(4))
    return (q, k, v, gates, uniform(N, side, side, 1, 1, 1, 1)), weight


def ours(what: str, side: int) -> dict[str, Callable]:
    """{label: function of (q, k, v, gates, direct)}."""
    if what == "four":
        labels = {"auto": "auto", "one by one": "hierarchical", "summed": "summed"}
        return {label: partial(_four, impl=impl) for label, impl in labels.items()}
    forms: dict[str, dict[str, Any]] = {"auto": {}, "hierarchical": {"impl": "hierarchical"}}
    forms |= {f"wavefront {c}": {"impl": "wavefront", "chunk": c} for c in (4, 8) if c < side}
    if side * side <= SLOW:
        forms["nodes"] = {"impl": "nodes"}
    return {label: partial(_core, **form) for label, form in forms.items()}


def _core(q: Any, k: Any, v: Any, gates: Gates, direct: Any, **form: Any) -> jax.Array:
    return grid_memory(q, k, v, gates, direct, **form)[0]


def _four(q: Any, k: Any, v: Any, gates: Gates, direct: Any, *, impl: str) -> jax.Array:
    """One head a row."""
    q, k, v, gates, direct = jax.tree.map(lambda x: x[:, None], (q, k, v, gates, direct))
    return read_grid(q, k, v, gates, direct, impl=impl)[:, 0]


def _theirs(module: ModuleType, what: str, side: int) -> dict[str, Callable]:
    """The paper's functions on the same arguments; the four directions only merged whole, as its layer calls them."""
    levels = side.bit_length() - 1

    def core(q: Any, k: Any, v: Any, g: Gates, direct: Any, *, levels: int) -> jax.Array:
        turns = (g.rl, g.du, g.dl, g.ru)
        return module.pLSTM2D_jax(q, k, v, g.source_r, g.source_d, *turns, g.mark_l, g.mark_u, direct, levels=levels)

    def four(q: Any, k: Any, v: Any, g: Gates, direct: Any) -> jax.Array:
        gates = (g.source_r, g.source_d, g.rl, g.du, g.dl, g.ru, g.mark_l, g.mark_u)
        return module.pLSTM2D_parallel_fused_jax(q, k, v, *gates, direct, levels=levels)

    if what == "four":
        return {"ml-jku/plstm": four}
    return {
        "ml-jku/plstm": partial(core, levels=levels),
        f"ml-jku/plstm, chunks of {side // 2}": partial(core, levels=levels - 1),
    }


def _compiled(function: Callable, which: str, arguments: tuple, weight: jax.Array) -> Callable[[], Any]:
    def both(arguments: tuple, weight: jax.Array) -> Any:
        out, back = jax.vjp(lambda arguments: function(*arguments), arguments)
        return out, back(weight)[0]

    run = jax.jit((lambda arguments, weight: function(*arguments)) if which == "forward" else both)
    return lambda: run(arguments, weight)


def _difference(results: dict[str, Any]) -> float:
    """The largest relative difference of any two results.

    Raises:
      ValueError: more than rounding explains.
    """
    first, *others = (jax.tree.leaves(result) for result in results.values())
    worst = 0.0
    for other in others:
        for a, b in zip(first, other, strict=True):
            worst = max(worst, float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(a).max(), 1)))
    if not worst < TOLERANCE:
        raise ValueError(
            f"grid: results of {', '.join(results)} differ by {worst:.2g}: this is not the same mathematics"
        )
    return worst


def _ratios(samples: Samples) -> dict[str, Any]:
    times = {label: median(values) for label, values in samples.items()}
    own = [label for label in times if label != "auto" and "plstm" not in label]
    best = min(own, key=lambda label: times[label])
    found: dict[str, Any] = {"best": best, "ratio_auto_to_best": ratio(samples, "auto", best)}
    others = [label for label in times if "plstm" in label]
    if others:
        fastest = min(others, key=lambda label: times[label])
        found |= {"fastest_of_theirs": fastest, "ratio_auto_to_theirs": ratio(samples, "auto", fastest)}
    return found


def _worst(rows: Sequence[Row], what: str) -> float | None:
    """The largest ratio of auto to the faster of their forms, over the rows with gradients."""
    numbers = [row.numbers for row in rows if row.case["what"] == what and row.case["pass"] == "both"]
    return max((n["ratio_auto_to_theirs"] for n in numbers if "ratio_auto_to_theirs" in n), default=None)


AIMS = (
    Aim(
        "one direction with gradients beside ml-jku/plstm on JAX, worst row",
        "<=",
        1.0,
        "times",
        partial(_worst, what="core"),
    ),
    Aim(
        "four directions with gradients beside ml-jku/plstm on JAX, worst row",
        "<=",
        1.0,
        "times",
        partial(_worst, what="four"),
    ),
)

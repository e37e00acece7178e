"""What every recurrence obeys, whatever its algebra: one row a recurrence, one test a law.

Rows stand in rows_<algebra>.py as `LAWS`; `test_laws.py` runs them all. A row says how to draw arguments (a dict of arrays, batch
first, time second) and how to run them; everything else is the same for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 3e-2}
LENGTHS = (1, 2, 3, 63, 64, 65, 1000)
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on


@dataclass(frozen=True)
class Law:
    """One recurrence.

    draw(T, seed, dtype) -> arguments; run(args, impl=, reverse=False, segment_ids=None) -> (outputs [B,T,...], last state).
    impls: those beside "sequential"; time: the arguments with a time axis; state: the name of the state among the arguments.
    """

    name: str
    draw: Callable[[int, int, Any], dict]
    run: Callable[..., tuple[Any, Any]]
    impls: tuple[str, ...]
    time: tuple[str, ...]
    state: str = "h0"
    reversible: bool = True
    segments: bool = True
    tolerance: Mapping[str, float] = field(default_factory=lambda: dict(TOLERANCE))
    lengths: tuple[int, ...] = LENGTHS

    def __hash__(self) -> int:
        return hash(self.name)


@cache
def compiled(law: Law, impl: str, reverse: bool = False) -> Callable:
    """(args, segment_ids) -> (outputs, last state), jitted."""

    def run(args: dict, segment_ids: Any = None) -> tuple[Any, Any]:
        return law.run(args, impl=impl, reverse=reverse, segment_ids=segment_ids)

    return jax.jit(run, compiler_options=QUICK)


@cache
def differentiated(law: Law, impl: str) -> Callable:
    """(args, seed) -> ((outputs, last state), gradients of a random linear function of both)."""

    def run(args: dict) -> tuple[Any, tuple]:
        def value(args: dict) -> tuple[Any, tuple]:
            found = law.run(args, impl=impl)
            return sum(_weighed(found)), found

        gradients, found = jax.grad(value, has_aux=True)(args)
        return found, gradients

    return jax.jit(run, compiler_options=QUICK)


def _weighed(tree: Any) -> list:
    """Every leaf times weights that differ from entry to entry."""
    return [
        (leaf.astype(jnp.float32 if leaf.dtype != jnp.float64 else jnp.float64) * _weights(leaf)).sum()
        for leaf in jax.tree.leaves(tree)
    ]


def _weights(leaf: jax.Array) -> np.ndarray:
    return np.cos(1.0 + 0.7 * np.arange(leaf.size)).reshape(leaf.shape).astype(np.float32)


def close(got: Any, want: Any, tolerance: float) -> None:
    """Asserts equality of two trees up to `tolerance`, relative to the largest entry of each leaf."""

    def compare(got: jax.Array, want: jax.Array) -> None:
        got, want = (np.asarray(x, np.float64) for x in (got, want))
        scale = max(1.0, float(np.abs(want).max(initial=0.0)))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)

    jax.tree.map(compare, got, want)


def split(law: Law, args: dict, cut: int) -> tuple[dict, dict]:
    """The arguments of the steps before `cut`, and of those from it on."""
    return (
        {k: jax.tree.map(lambda x: x[:, :cut], v) if k in law.time else v for k, v in args.items()},
        {k: jax.tree.map(lambda x: x[:, cut:], v) if k in law.time else v for k, v in args.items()},
    )


def joined(left: Any, right: Any) -> Any:
    """The outputs of two parts, one after the other."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), left, right)

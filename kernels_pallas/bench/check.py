"""Results and gradients against float64, as relative errors |got - wanted| / |wanted| in the Euclidean norm.

The reference runs in float64 on the CPU, on the part of the arguments that `Subject.part` holds.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.bench.subject import Subject, cut, split

# What may remain, by dtype: float32 matmuls on tensor cores keep ten bits, bfloat16 rounds inputs and results to eight.
LIMITS = {"float64": 1e-8, "float32": 2e-3, "bfloat16": 4e-2}

Wanted = tuple[list[np.ndarray | None], list[np.ndarray]]


def limit(case: dict[str, Any]) -> float:
    """The error that a case may have."""
    return LIMITS[str(case.get("dtype", "float32"))]


def wanted(subject: Subject, *, gradients: bool = True) -> Wanted:
    """(results, gradients) of the checked part in float64; None for results that are not checked."""
    chosen, merge = split(tuple(None if x is None else np.asarray(x) for x in subject.part))
    weights = [
        None if checked is None else cut(np.asarray(w), checked).astype(np.float64)
        for w, checked in zip(subject.cotangents(part=True), subject.checked, strict=True)
    ]
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = [x.astype(np.float64) for x in chosen]

        def run(*floating: Any) -> Any:
            return jax.tree.leaves(subject.op.run(*merge(floating), impl="reference"))

        def evaluate(*floating: Any) -> Any:
            if not gradients:
                return run(*floating), []
            out, back = jax.vjp(run, *floating)
            given = [jnp.zeros_like(x) if w is None else w.astype(x.dtype) for x, w in zip(out, weights, strict=True)]
            return out, back(given)

        out, found = jax.jit(evaluate)(*wide)
        kept = [None if c is None else np.asarray(x) for x, c in zip(out, subject.checked, strict=True)]
        return kept, [np.asarray(g) for g in found]


def results_error(got: list[Any], right: Wanted) -> float:
    """The worst error of the results that are there; infinite where one is not a number."""
    pairs = [(g, w) for g, w in zip(got, right[0], strict=True) if g is not None and w is not None]
    return max((error(np.asarray(cut(g, w.shape)), w) for g, w in pairs), default=0.0)


def gradients_error(got: list[Any], right: Wanted) -> float:
    """The same of the gradients of every floating argument."""
    return max((error(np.asarray(cut(g, w.shape)), w) for g, w in zip(got, right[1], strict=True)), default=0.0)


def error(got: np.ndarray, right: np.ndarray) -> float:
    """Relative error; where the right values are next to nothing, against 1e-3 an entry."""
    difference = np.linalg.norm((got.astype(np.float64) - right).ravel())
    found = float(difference / max(np.linalg.norm(right.ravel()), 1e-3 * right.size**0.5))
    return found if np.isfinite(found) else float("inf")

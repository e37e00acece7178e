"""Runs one known answer through its adapter and compares every output.

|got - want| <= atol + rtol |want|   elementwise, where both shapes are equal
compare: "abs"                       absolute values
         "column_projectors"         v_j v_j^H of every column (free phases)
         "row_projectors"            conj(r_j)^T r_j of every row
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from tests.golden.cases import Case

Adapter = Callable[[str, dict, dict, dict], Mapping[str, Any]]


def adapter(slug: str) -> Adapter | None:
    """`run(kind, options, inputs, params)` of tests/golden/adapters/<slug>.py, None if there is no such file."""
    name = f"tests.golden.adapters.{slug}"
    return import_module(name).run if find_spec(name) else None


def check(case: Case, run: Adapter) -> list[str]:
    """Problems, one line each; empty if every output fits."""
    inputs, params, expected = case.arrays()
    try:
        with _precision([*inputs.values(), *params.values()] or list(expected.values())):
            got = run(case.kind, dict(case.options), inputs, params)
            got = {name: np.asarray(got[name]) for name in expected if name in got}
    except Exception as error:  # whatever an adapter raises is this case's failure, not the runner's
        first_line = (str(error).splitlines() or [""])[0]
        return [f"{type(error).__name__}: {first_line}"]
    tolerances = case.tolerances()
    problems = [
        f"{name}: missing" if name not in got else difference(got[name], want, **tolerances[name])
        for name, want in expected.items()
    ]
    return [problem for problem in problems if problem is not None]


def difference(
    got: np.ndarray, want: np.ndarray, atol: float = 0.0, rtol: float = 0.0, compare: str | None = None
) -> str | None:
    """None if `got` fits, else what is wrong in one line."""
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if want.dtype.kind in "USO":
        return None if np.array_equal(got, want) else "text differs"
    wide = np.complex128 if "c" in (got.dtype.kind, want.dtype.kind) else np.float64
    got, want = (COMPARISONS[compare](a.astype(wide)) for a in (got, want))
    if not want.size:
        return None
    error = np.where(_equal(got, want), 0.0, np.abs(got - want))
    excess = error - (atol + rtol * np.abs(np.where(np.isfinite(want), want, 0)))
    excess = np.where(np.isnan(excess), np.inf, excess)
    if excess.max() <= 0:
        return None
    worst = np.unravel_index(excess.argmax(), excess.shape)
    where = f"[{','.join(map(str, worst))}]"
    return (
        f"{(excess > 0).sum()} of {excess.size} values off, worst at {where}: {got[worst]:.9g}, not {want[worst]:.9g}"
    )


def _equal(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    return (got == want) | (np.isnan(got) & np.isnan(want))


def _columns(a: np.ndarray) -> np.ndarray:
    return np.einsum("...ij,...kj->...jik", a, a.conj())


def _rows(a: np.ndarray) -> np.ndarray:
    return np.einsum("...ji,...jk->...jik", a.conj(), a)


COMPARISONS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda a: a,
    "abs": np.abs,
    "column_projectors": _columns,
    "row_projectors": _rows,
}


def _precision(arrays: list[np.ndarray]) -> ExitStack:
    """Highest matmul precision, and 64-bit mode if any array needs it."""
    stack = ExitStack()
    stack.enter_context(jax.default_matmul_precision("highest"))
    stack.enter_context(jax.enable_x64(any(a.dtype in (np.float64, np.complex128) for a in arrays)))
    return stack

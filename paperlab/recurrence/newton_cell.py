"""What the whole-sequence solver is told: a cell, how to solve it, and what comes back.

A `Cell` is one step of a nonlinear recurrence with the structure of its state Jacobian. Write the step, declare the structure, and
the sequence can be evaluated in parallel; `check_cell` (jacobian.py) says whether the declaration is true.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax import Array

from paperlab.recurrence.block import STRUCTURES, state_axes

METHODS = ("newton", "quasi", "picard", "elk", "quasi_elk")
ITERATIONS = 3  # arXiv 2510.21450, section 2: enough from initialisation on, whatever the length


@dataclass(frozen=True)
class Cell:
    """h_t = step(params, x_t, h_{t-1}).

    Every function is pure, broadcasts over leading axes (batch and time) and reads arrays through its arguments only: what should
    have a gradient is in `params` or x. Keep one Cell object (or its functions) instead of making it anew in every call, or jitted
    programs are compiled anew too.

    Args:
      step: (params, x [..., features], h [..., *state]) -> the next state, shaped like h.
      state: the shape of one state: (n,) for "diagonal" and "dense", (K, n) for "blocks", (H, d) for "heads".
      structure: which entries of d step / d h may differ from zero. "diagonal": channel by channel; "blocks": K variables a
        channel, e.g. an LSTM's (c, h); "heads": one dense matrix a head; "dense": all. See `block_scan`.
      guess: (params, x) -> states to start from, may broadcast; by default one step from zero (from h0 at the first).
      jacobian: (params, x, h) -> d step / d h in the layout of `block_scan`; by default from forward-mode derivatives: 1 for
        "diagonal", K for "blocks", d for the others.
      diagonal: (params, x, h) -> the diagonal of the Jacobian, shaped like h, for "quasi"; by default cut out of the Jacobian,
        which costs as much as the whole.
      output: states -> outputs, e.g. the h of (c, h); by default the states.
    """

    step: Callable[[Any, Any, Array], Array]
    state: tuple[int, ...]
    structure: str = "dense"
    guess: Callable[[Any, Any], Any] | None = None
    jacobian: Callable[[Any, Any, Array], Array] | None = None
    diagonal: Callable[[Any, Any, Array], Array] | None = None
    output: Callable[[Array], Any] | None = None

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise ValueError(f"structure={self.structure!r}: choose one of {', '.join(STRUCTURES)}")
        axes = state_axes(self.structure)
        if len(self.state) != axes or any(n < 1 for n in self.state):
            raise ValueError(f"state={self.state}: structure={self.structure!r} has {axes} axes of size 1 or more")


@dataclass(frozen=True)
class Solver:
    """How the trajectory is found. Without a tolerance: after a fixed count of iterations, as in training.

    With a tolerance, iteration goes on until |step(h_{t-1}, x_t) - h_t| <= tolerance + relative * max |h| at every step of a
    sequence. A sequence that does not get there within `iterations` is never returned as if it had: its states are NaN, and so are
    gradients through them ("nan"), or `jax.experimental.checkify` reports it ("check": raises at once outside jit; inside jit the
    program must be wrapped in `checkify.checkify`).

    Args:
      method: how an iterate is corrected.
        "newton": the exact Jacobian; quadratic, T iterations always suffice.
        "quasi": its diagonal (arXiv 2407.19115, section 4.1); elementwise scans for a dense cell, linear convergence.
        "picard": none, h <- step(h, x); no scan at all, many iterations.
        "elk": Levenberg-Marquardt (arXiv 2407.19115, section 4.2): corrections are held to the size that `trust` allows; stays
        bounded where Newton explodes, converges linearly.
        "quasi_elk": the same with the diagonal, elementwise.
      iterations: the count, or with a tolerance the most; by default 3, with a tolerance as many as there are steps (in
        a window), which always suffice for "newton", "quasi" and "picard" without damping.
      tolerance: absolute bound on the residual; 1e-5 is about what float32 allows for states of size 1.
      relative: bound relative to the largest entry of a sequence's states.
      damping: the share of a correction that is applied; below 1 it steadies, and linear convergence is what is left.
      trust: lambda of "elk" and "quasi_elk", the weight on the size of a correction; 0 would be Newton's.
      smooth: "elk": True is the minimiser itself (Kalman smoother), False the forward pass alone (Kalman filter).
      window: solve this many steps at a time, one window after the other, each from the last state of the one before.
      failure: "nan" or "check".
      differentiate: "implicit": one linear solve in reverse at the solution, whatever the number of iterations; "unrolled": through
        the iterations, for tests (fixed count only).
    """

    method: str = "newton"
    iterations: int | None = None
    tolerance: float | None = None
    relative: float | None = None
    damping: float = 1.0
    trust: float = 1.0
    smooth: bool = True
    window: int | None = None
    failure: str = "nan"
    differentiate: str = "implicit"

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", METHODS),
            ("failure", ("nan", "check")),
            ("differentiate", ("implicit", "unrolled")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name in ("iterations", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        for name in ("tolerance", "relative"):
            if (value := getattr(self, name)) is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value}: must be a finite number, not negative")
        for name in ("damping", "trust"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name}={getattr(self, name)}: must be a finite number above zero")
        if self.adaptive and self.differentiate == "unrolled":
            raise ValueError(
                "differentiate='unrolled' needs a fixed count: give iterations, and neither tolerance nor relative"
            )

    @property
    def adaptive(self) -> bool:
        """Whether iteration stops by a tolerance."""
        return self.tolerance is not None or self.relative is not None

    def limit(self, steps: int) -> int:
        """The count of iterations, or the most of them, for so many steps."""
        return self.iterations or (steps if self.adaptive else ITERATIONS)


class Solution(NamedTuple):
    """A trajectory and how far it can be trusted.

    outputs: what `Cell.output` makes of the states, in the dtype of x.
    states: [..., T, *state] in the dtype of x.
    last: the state that the recurrence ends with, float32 (float64 for float64 inputs).
    iterations: [...] int32, one a sequence: iterations until the tolerance was met, or the fixed count; 0 for impl="sequential".
    residual: [...], the largest |step(h_{t-1}, x_t) - h_t| of a sequence. Costs one more evaluation of the step, if it is used.
    converged: [...] bool, whether the tolerance was met; None after a fixed count, which promises nothing: look at the residual.
    """

    outputs: Any
    states: Array
    last: Array
    iterations: Array
    residual: Array
    converged: Array | None

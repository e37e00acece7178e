"""Everything that a run carries from one step to the next."""

from typing import Any, NamedTuple


class TrainState(NamedTuple):
    """Saved, sharded and donated as one tree; also the tree of its shapes, and of its shardings.

    step: int32 [], optimiser steps done.
    data_index: int32 [], the next global training batch; kept apart from `step`, since a rollback skips data.
    params: what gradients train (and what is frozen).
    state: what the task carries and gradients don't train.
    opt_state: moments of the trained parameters only.
    ema: exponential moving average of params, or None.
    guard: what the run has seen of its own loss (`guard.Guard`).
    """

    step: Any
    data_index: Any
    params: Any
    state: Any
    opt_state: Any
    ema: Any
    guard: Any


def evaluation_params(state: TrainState) -> Any:
    """The weights to evaluate and to load: the moving average where one is kept."""
    return state.params if state.ema is None else state.ema

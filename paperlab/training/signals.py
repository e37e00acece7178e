"""SIGTERM and SIGINT ask for a stop at the end of the step; a second SIGINT stops at once."""

import signal
import threading
from types import FrameType, TracebackType

import jax
import numpy as np


class StopRequest:
    """Context in which `requested(step)` tells whether to stop after `step`; all processes get the same answer."""

    def __init__(self, agree_every: int = 1):
        self._name = ""
        self._agree_every = max(agree_every, 1)
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._name = signal.Signals(number).name

    @property
    def name(self) -> str:
        """The signal that came first, or "another process"."""
        return self._name or "another process"

    def requested(self, step: int) -> bool:
        """Several processes compare notes every `agree_every` steps, since all must stop at the same one."""
        if jax.process_count() == 1:
            return bool(self._name)
        if step % self._agree_every:
            return False
        from jax.experimental import multihost_utils

        return bool(np.any(multihost_utils.process_allgather(np.asarray(bool(self._name)))))

"""SIGTERM, SIGINT and SIGUSR1 (which Slurm can send ahead of its time limit) ask for a stop; a second SIGINT stops at once.

Before the trainer has anything to save they end the program where it stands (`at_once`); from then on they are only
noted, and the loop asks between steps, and between the batches of an evaluation (`StopRequest`).
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

ASK = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal came while there was nothing to save; the text is its name."""


_lost: list[str] = []  # what `at_once` raised where nothing can be raised, in a callback of the garbage collector


@contextmanager
def at_once() -> Iterator[None]:
    """Context in which the signals raise `Interrupted` from wherever the main thread is.

    Where Python swallows it, since the signal came inside a callback, a `StopRequest` that follows takes it up.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _lost.append(signal.Signals(number).name)
        raise Interrupted(_lost[-1])

    before, hook = _install(stop), sys.unraisablehook
    sys.unraisablehook = lambda found: None if issubclass(found.exc_type, ASKED) else hook(found)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _lost.clear()
        _restore(before)


ASKED = (Interrupted, KeyboardInterrupt)


class StopRequest:
    """Context in which `requested(count)` tells whether to stop; all processes get the same answer.

    Args:
      agree_every: several processes compare notes at every count that this divides, since all must stop at the same one.
    """

    def __init__(self, agree_every: int = 1):
        self._name = _lost[0] if _lost else ""
        self._hurry = self._agreed = False
        self._agree_every = max(agree_every, 1)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = _install(self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _restore(self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._name and number == signal.SIGINT:
            self._hurry = True
            raise KeyboardInterrupt
        self._name = self._name or signal.Signals(number).name

    @property
    def name(self) -> str:
        """The signal that came first, or "another process"."""
        return self._name or "another process"

    def requested(self, count: int = 0) -> bool:
        """Whether to stop after this many steps or batches; 0 is a place where all processes compare notes.

        Raises:
          KeyboardInterrupt: a second SIGINT raised one that got lost, inside a callback of the garbage collector.
        """
        import jax

        if self._hurry:
            raise KeyboardInterrupt
        if jax.process_count() == 1:
            return bool(self._name)
        if not self._agreed and count % self._agree_every == 0:
            import numpy as np
            from jax.experimental import multihost_utils

            self._agreed = bool(np.any(multihost_utils.process_allgather(np.asarray(bool(self._name)))))
        return self._agreed


def _install(handler: Any) -> dict[int, Any]:
    """Sets the handler where that is allowed; returns those before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in ASK}


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

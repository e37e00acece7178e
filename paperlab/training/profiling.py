"""A profiler trace of some steps: `--config.profile.steps=10:15` writes workdir/profile for TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from paperlab.errors import ConfigError


def parse_range(text: str) -> range:
    """ "10:15" is steps 10 to 14; "" is none."""
    if not text:
        return range(0)
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ConfigError(f"config.profile.steps={text!r}: say FIRST:LAST, such as 10:15")
    return range(int(first), int(last))


class Profiler:
    """Starts before the first step of the range that the run comes to, stops after its last."""

    def __init__(self, steps: str, workdir: Path):
        self._steps, self._directory, self._running = parse_range(steps), workdir / "profile", False

    def before(self, step: int) -> None:
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """`result` is waited for, so that the trace holds the whole of the last step."""
        if self._running and step + 1 >= self._steps.stop:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

"""What the person at the terminal sees: a bar with loss, throughput, ETA and MFU; plain lines where there is none."""

import sys
from collections.abc import Mapping
from typing import Any

SHOWN = ("loss", "bits_per_byte", "accuracy", "perplexity")


class Progress:
    """A bar on a terminal, else plain lines; of several processes the first alone says anything."""

    def __init__(self, steps: int, *, process: int = 0, start: int = 0):
        self.steps, self._speaks = steps, process == 0
        self._bar: Any = None
        if process == 0 and sys.stdout.isatty():
            self._bar, self._task = _make_bar(steps, start)
            self._bar.start()

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of a log step."""
        text = describe(metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=text)
        else:
            self.say(f"step {step}/{self.steps}  {text}  eta {clock(metrics.get('eta'))}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._speaks:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _make_bar(steps: int, start: int) -> tuple[Any, Any]:
    from rich import progress

    bar = progress.Progress(
        progress.TextColumn("[bold]step[/] {task.completed}/{task.total}"),
        progress.BarColumn(bar_width=None),
        progress.TextColumn("{task.fields[numbers]}"),
        progress.TextColumn("eta"),
        progress.TimeRemainingColumn(compact=True),
        expand=True,
    )
    return bar, bar.add_task("train", total=steps, completed=start, numbers="compiling")


def describe(metrics: Mapping[str, float]) -> str:
    """ "loss 1.234  bits_per_byte 1.78  11.2k tokens/s  MFU 41.0%"."""
    parts = [f"{name.replace('_', ' ')} {metrics[name]:.4g}" for name in SHOWN if name in metrics]
    for name in ("tokens_per_second", "examples_per_second"):
        if name in metrics:
            parts.append(f"{short(metrics[name])} {name.split('_')[0]}/s")
    if "mfu" in metrics:
        parts.append(f"MFU {100 * metrics['mfu']:.1f}%")
    return "  ".join(parts)


def short(number: float) -> str:
    """1234567 -> "1.23M"."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def clock(seconds: float | None) -> str:
    """3725 -> "1:02:05"."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

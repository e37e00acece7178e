"""Numbers on their way from the devices to the writers.

The values of step s are fetched after step s + 1 has been dispatched, so the device never waits for the host. A
reported metric is (sum of sums) / (sum of weights) over the steps since the last report, added in float64.
"""

import math
import statistics
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax

Batch = TypeVar("Batch")

Sums = dict[str, list[float]]
# For the guard, not for the writers: 0 in every step that counts.
WATCHED = ("nonfinite", "nonfinite_parameters", "spike", "discarded_in_a_row")


class FaultError(RuntimeError):
    """A step that was discarded; the message is one line that names it.

    Attributes:
      step: its number.  cause: "nonfinite" or "spike".  row: steps discarded in a row, this one included.
      advice: what may mend it.
    """

    cause, advice = "", ""

    def __init__(self, message: str, *, step: int = 0, row: int = 1):
        super().__init__(message)
        self.step, self.row = step, row


class NonFiniteError(FaultError):
    """Loss, gradient or the parameters that they lead to are NaN or infinite."""

    cause, advice = "nonfinite", "lower config.optim.lr, set config.optim.clip, or look at the batch"


class SpikeError(FaultError):
    """The loss stands far above its running mean."""

    cause, advice = "spike", "lower config.optim.lr, look at the batch, or raise config.faults.spike"


class Meter:
    """Sums metrics between reports; by `state` and `restore` a resumed run reports what an unbroken one would.

    `push` and `flush` raise `FaultError` for a step that the device has discarded, and leave its metrics out.
    """

    def __init__(self) -> None:
        self.sums: Sums = {}
        self._waiting: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> None:
        """Takes the device metrics of `step` and adds up those of the step before."""
        previous, self._waiting = self._waiting, (step, metrics)
        self._add(previous)

    def skip(self) -> None:
        """Counts a step that was skipped: `skipped` in the next report."""
        self.sums.setdefault("skipped", [0.0, 1.0])[0] += 1

    def flush(self) -> None:
        """Adds up what is still on the device; waits for it."""
        previous, self._waiting = self._waiting, None
        self._add(previous)

    def report(self) -> dict[str, float]:
        """The means since the last report; what had no weight was not measured and is left out."""
        means = {name: total / weight for name, (total, weight) in self.sums.items() if weight}
        self.sums = {}
        return {"loss": means.pop("loss"), **means} if "loss" in means else means

    def state(self) -> Sums:
        return {name: list(pair) for name, pair in self.sums.items()}

    def restore(self, sums: Sums) -> None:
        self.sums = {name: list(pair) for name, pair in sums.items()}

    def _add(self, waiting: tuple[int, Any] | None) -> None:
        if waiting is None:
            return
        step, metrics = waiting
        values = dict(jax.device_get(metrics))
        _refuse(step, values)
        add(self.sums, {name: pair for name, pair in values.items() if name not in WATCHED})


def _refuse(step: int, values: Any) -> None:
    """Raises the fault that the device has found, if it has."""
    bad, broken, spike, row = (float(values[name][0]) for name in WATCHED)
    loss, weight = (float(x) for x in values["loss"])
    mean = loss / weight if weight else loss
    if bad or not math.isfinite(loss):
        norm = float(values["grad_norm"][0])
        what = f"step {step}: loss {mean:.6g} and gradient norm {norm:.6g} are not finite ({bad:.0f} entries)"
        raise NonFiniteError(what, step=step, row=int(row))
    if broken:
        what = f"step {step}: its update would make {broken:.0f} parameters NaN or infinite (loss {mean:.6g})"
        raise NonFiniteError(what, step=step, row=int(row))
    if spike:
        what = f"step {step}: loss {mean:.6g} is a spike, {spike:.3g} deviations above its running mean"
        raise SpikeError(what, step=step, row=int(row))


def add(sums: Sums, values: Any) -> None:
    """sums += values, for {name: (sum, weight)}."""
    for name, (total, weight) in values.items():
        pair = sums.setdefault(name, [0.0, 0.0])
        pair[0] += float(total)
        pair[1] += float(weight)


class Clock:
    """Throughput between reports. The first window after a start is left out of the median: it holds the warm-up."""

    def __init__(
        self, *, per_step: float, unit: str, flops: float | None, peak: float | None, seconds_before: float = 0.0
    ):
        self.per_step, self.unit, self.flops, self.peak = per_step, unit, flops, peak
        self._begin = self._last = time.monotonic()
        self._before, self._last_step = seconds_before, 0
        self._waited = 0.0
        self.rates: list[float] = []

    def start(self, step: int) -> None:
        self._last, self._last_step, self._waited = time.monotonic(), step, 0.0

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time that each is waited for counted."""
        while True:
            since = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.monotonic() - since
            yield batch

    def pause(self) -> float:
        return time.monotonic()

    def resume(self, since: float) -> None:
        """Takes the time since `pause` (an evaluation, a save) out of the throughput."""
        self._last += time.monotonic() - since

    def seconds(self) -> float:
        """Wall time of the run, over all its resumptions."""
        return self._before + time.monotonic() - self._begin

    def report(self, step: int, steps: int) -> dict[str, float]:
        """{"tokens_per_second", "steps_per_second", "data_wait", "mfu" where it is known, "seconds", "eta"}.

        data_wait: share of the time since the last report in which the loop stood waiting for a batch.
        """
        now = time.monotonic()
        elapsed, done = max(now - self._last, 1e-9), step - self._last_step
        wait, self._waited = min(self._waited / elapsed, 1.0), 0.0
        self._last, self._last_step = now, step
        if done < 1:
            return {}
        per_second = done / elapsed
        self.rates.append(per_second)
        found = {self.unit: per_second * self.per_step, "steps_per_second": per_second, "seconds": self.seconds()}
        found["data_wait"] = wait
        if self.flops and self.peak:
            found["mfu"] = per_second * self.flops / self.peak
        return {**found, "eta": (steps - step) / per_second}

    def median(self) -> float | None:
        """Median tokens (or rows) per second."""
        rates = self.rates[1:] or self.rates
        return statistics.median(rates) * self.per_step if rates else None

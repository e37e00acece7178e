"""The one training loop: a config, a work directory and a task in, a trained state and a summary out.

    set up -> resume or start -> steps, with reports, evaluations and checkpoints between -> final evaluation -> summary

The host runs one step ahead of what it reads: the metrics of step s are fetched when step s + 1 is under way. Before a
checkpoint is written the metrics so far are read, so that a step that was discarded (`guard`) is known before it. What
follows such a step is `config.faults.policy`: stop, skip it, or go back to the last checkpoint and leave its data since
then out (`incidents`). Everything that is not a function of (config, step, data index) is in the checkpoint; on the same
mesh a resumed run equals an uninterrupted one bit for bit.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab import lock
from paperlab.errors import ConfigError
from paperlab.training import data, memory, plots, setup, summary
from paperlab.training.checkpoint import Checkpoints, Restored, restore_params
from paperlab.training.evaluation import Evaluators, GivenUpError
from paperlab.training.incidents import Incidents
from paperlab.training.metrics import Clock, FaultError, Meter
from paperlab.training.peaks import peak_flops
from paperlab.training.profiling import Profiler
from paperlab.training.progress import Progress, describe
from paperlab.training.protocol import Task, derived, option
from paperlab.training.signals import StopRequest
from paperlab.training.state import TrainState, evaluation_params
from paperlab.training.writers import Writers, read

OnStep = Callable[[int, TrainState], None]


def train(
    config: Any, workdir: str | Path, task: Task, *, eval_only: bool = False, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Trains to `config.train.steps`, resuming from the newest good checkpoint of `workdir`; returns the summary.

    SIGTERM, SIGINT and SIGUSR1 make it save and return with status "interrupted"; a second SIGINT raises
    KeyboardInterrupt at once.

    Args:
      eval_only: evaluates the newest good checkpoint over whole splits, and writes nothing.
      on_step: called after every step with its number and the state, which is donated to the next step.

    Raises:
      ConfigError: what was asked for cannot be run, or another run holds the work directory.
      FaultError: loss or gradient became NaN or infinite, or the loss a spike, and `config.faults` says to stop (the message
        names the step).
      CheckpointError: a checkpoint could not be written.
    """
    workdir = Path(workdir)
    if eval_only:
        ready = setup.prepare(config, task)
        with jax.set_mesh(ready.mesh):
            return _evaluate_only(config, workdir, task, ready)
    with lock.hold(workdir) if jax.process_index() == 0 else nullcontext(), StopRequest(config.train.log_every) as stop:
        ready = setup.prepare(config, task)
        with jax.set_mesh(ready.mesh):
            run = Run(config, workdir, task, ready, stop)
            hurry = False
            try:
                return run.finish(run.steps(on_step))
            except KeyboardInterrupt:
                hurry = True
                raise
            finally:
                run.close(at_once=hurry)


class Run:
    """What the loop holds in its hands."""

    def __init__(self, config: Any, workdir: Path, task: Task, ready: setup.Setup, stop: StopRequest):
        self.config, self.workdir, self.task, self.ready, self.stop = config, workdir, task, ready, stop
        self.process = jax.process_index()
        memory.refuse_state(ready.shapes, ready.mesh)
        self.evaluators = Evaluators(config, task, ready.mesh)
        self.evaluators.check_metric(config.checkpoint.best_metric, ready.shapes, ready.batch)
        self.dataset = data.open_split(task, "train", ready.mesh)
        workdir.mkdir(parents=True, exist_ok=True)
        if self.process == 0:
            table = setup.parameters_text(ready)
            (workdir / "parameters.txt").write_text(table, encoding="utf-8")
            print(table, flush=True)
        self.checkpoints = Checkpoints(workdir, config.checkpoint, say=self._say_plainly)
        self.profiler = Profiler(config.profile.steps, workdir)
        self.incidents = Incidents(workdir, say=self._say_plainly)
        notes = self._restore()
        self.started = self.step
        self.clock = self._clock(notes.get("seconds", 0.0))
        self.clock.rates = notes.get("rates", [])
        self.progress = Progress(config.train.steps, process=self.process, start=self.step)
        self._go_on_from_here()
        if self.saved is not None:
            self.progress.say(f"resumed from step {self.step}")

    def _restore(self) -> dict[str, Any]:
        """Takes over the newest good checkpoint, or else begins; returns what was noted with it."""
        restored = self.checkpoints.restore_latest(self.ready.shapes)
        self.state: Any = self._start() if restored is None else restored.tree
        notes = {} if restored is None else restored.metadata
        self.step = self.reported = int(self.state.step)
        self.saved = None if restored is None else self.step
        self.meter = Meter()
        self.meter.restore(notes.get("window", {}))
        self.last: dict[str, float] = notes.get("last", {})
        self.evaluated: dict[str, float] = notes.get("metrics", {})
        self.owed: list[str] = notes.get("owed", [])
        self.fresh: tuple[int, dict[str, float]] = (0, {})
        self.batch_of: dict[int, int] = {}
        return notes

    def _go_on_from_here(self) -> None:
        """Drops what was written of later steps."""
        self.incidents.forget_after(self.step)
        self.writers = Writers(self.config, self.workdir, process=self.process, keep_until=self.step)

    def _say_plainly(self, text: str) -> None:
        if self.process == 0:
            print(text, flush=True)

    def _start(self) -> TrainState:
        """A fresh state; with `config.init_from`, with the weights of another run."""
        state = setup.init_state(self.config, self.task, self.ready, data.to_global(self.dataset[0], self.ready.mesh))
        if not self.config.init_from:
            return state
        params, step = restore_params(self.config.init_from, target=self.ready.shapes.params)
        self._say_plainly(f"weights from {self.config.init_from}, step {step}")
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        return state._replace(params=params, ema=ema)

    def _clock(self, seconds_before: float) -> Clock:
        rows = option(self.task, "examples_per_batch") or jax.tree.leaves(self.ready.batch)[0].shape[0]
        tokens = option(self.task, "tokens_per_batch")
        flops = model_flops(self.task, self.ready.shapes.params)
        peak = peak_flops(self.ready.mesh.devices.flat[0])
        return Clock(
            per_step=tokens or rows,
            unit="tokens_per_second" if tokens else "examples_per_second",
            flops=flops,
            peak=peak and peak * self.ready.mesh.size,
            seconds_before=seconds_before,
        )

    def steps(self, on_step: OnStep | None) -> str:
        """Runs to the last step or to a signal; returns "complete" or "interrupted"."""
        if self.step >= self.config.train.steps:
            return "complete"
        if self.stop.requested():
            return self._interrupt()
        compiled = setup.compile_step(self.config, self.task, self.ready)
        memory.refuse_step(compiled, self.ready.mesh)
        self.progress.say(memory.text(self.ready.shapes, self.ready.batch, compiled, self.ready.mesh))
        if self.stop.requested():
            return self._interrupt()
        while True:
            try:
                return self._onward(compiled, on_step)
            except FaultError as fault:
                found = fault.with_traceback(None)
            self._roll_back(found)

    def _onward(self, compiled: Any, on_step: OnStep | None) -> str:
        """From the state as it is to the last step or to a signal. Raises the fault that cannot be skipped."""
        steps = self.config.train.steps
        owed = [name for name in self.evaluators.due(self.step) if name in self.owed]
        if owed and not self._evaluate(owed):
            return self._interrupt()
        key = jax.device_put(jax.random.key(self.config.seed), self.ready.placement.replicated)
        self.clock.start(self.step)
        expected = int(self.state.data_index)
        for index, batch in self._batches(expected):
            if index != expected:
                here = jax.device_put(np.int32(index), self.ready.placement.replicated)
                self.state = self.state._replace(data_index=here)
            expected = index + 1
            self.profiler.before(self.step)
            self.state, metrics = compiled(self.state, batch, key)
            self.profiler.after(self.step, metrics)
            self.step += 1
            self.batch_of = {self.step: index, **dict(list(self.batch_of.items())[:1])}
            self._push(metrics)
            if on_step is not None:
                on_step(self.step, self.state)
            if self.step >= steps:
                self._flush()
                return "complete"
            self._between_steps()
            if self.stop.requested(self.step):
                return self._interrupt()
        raise ConfigError(
            f"the training data ended at step {self.step} of {steps}: the task's train split must be endless"
        )

    def _batches(self, index: int) -> Iterator[tuple[int, Any]]:
        """(i, batch i) from `index` on, without those that a rollback left out."""
        until: int | None = index
        while until == index:
            index = self.incidents.next_batch(index)
            until = self.incidents.until(index)
            batches = data.global_batches(self.dataset, self.ready.mesh, start=index, stop=until)
            for batch in self.clock.waiting(batches):
                yield index, batch
                index += 1

    def _interrupt(self) -> str:
        """Saves what is not saved yet, and says so."""
        self._flush()
        if self.step == self.saved:
            self.progress.say(f"{self.stop.name}: nothing new to save, the last checkpoint is of step {self.step}")
        elif self.step == 0:
            self.progress.say(f"{self.stop.name} before the first step: nothing to save")
        else:
            self.progress.say(f"{self.stop.name}: saving step {self.step}")
            self._save()
        return "interrupted"

    def _push(self, metrics: Any) -> None:
        """Reads the metrics of the step before this one, and reports them where that one is a log step."""
        self._read(lambda: self.meter.push(self.step, metrics))
        self.progress.advance(self.step)
        self._report(self.step - 1)

    def _flush(self) -> None:
        self._read(self.meter.flush)
        self._report(self.step)

    def _read(self, read: Callable[[], None]) -> None:
        """Reads metrics. A fault in them that may be skipped is written down, any other goes up to `steps`."""
        faults = self.config.faults
        try:
            read()
        except FaultError as fault:
            if faults.policy != "skip" or fault.row > faults.skips:
                raise
            batch = self.batch_of[fault.step]
            self.incidents.add("skip", fault, data=[batch, batch])
            self.meter.skip()
            self.progress.say(f"{fault}: skipped with batch {batch}")

    def _roll_back(self, fault: FaultError) -> None:
        """Back to the last checkpoint, its data up to the fault left out; raises where the policy is to stop."""
        faults, before = self.config.faults, self.incidents.rollbacks_to(self.saved or 0)
        where = "nothing was saved" if self.saved is None else f"the last checkpoint is of step {self.saved}"
        if faults.policy == "rollback" and before < faults.rollbacks:
            return self._back(fault)
        if faults.policy == "skip":
            where = f"more than config.faults.skips={faults.skips} steps in a row were skipped; {where}"
        elif faults.policy == "rollback":
            where = f"it went back {before} times since then (config.faults.rollbacks); {where}"
        with suppress(OSError):
            self.incidents.add("stop", fault)
        raise type(fault)(f"{fault}; {where}; {fault.advice}", step=fault.step, row=fault.row)

    def _back(self, fault: FaultError) -> None:
        batch = self.batch_of[fault.step]
        self.checkpoints.wait()
        self.state = None
        self._restore()
        first = int(self.state.data_index)
        self.incidents.add("rollback", fault, restored=self.step, data=[first, batch])
        self.writers.close()
        self._go_on_from_here()
        self.progress.advance(self.step)
        self.progress.say(f"{fault}: back to step {self.step}, batches {first} to {batch} are left out")

    def _report(self, step: int) -> None:
        due = step % self.config.train.log_every == 0 or step == self.config.train.steps
        if not due or step <= self.reported:
            return
        self.reported = step
        means = self.meter.report()
        self.last = derived(self.task, means) if "loss" in means else means
        speed = self.clock.report(step, self.config.train.steps)
        self.progress.report(step, {**self.last, **speed})
        self.writers.write(step, {**self.last, **{name: value for name, value in speed.items() if name != "eta"}})

    def _between_steps(self) -> None:
        """Evaluations and checkpoints that are due."""
        every = self.config.train.checkpoint_every
        names, save = self.evaluators.due(self.step), bool(every) and self.step % every == 0
        if not names and not save:
            return
        self._flush()
        since = self.clock.pause()
        if names:
            self._evaluate(names)
        if save:
            self._save()
        self.clock.resume(since)

    def _evaluate(self, names: list[str]) -> bool:
        """Whether it came to its end; else, for a signal, it is owed and made up for when the run goes on."""
        try:
            self._evaluated(self.evaluators.run(names, self.state, stop=self.stop.requested))
        except GivenUpError:
            self.owed = names
            return False
        return True

    def _evaluated(self, found: dict[str, float], *, note: str = "") -> None:
        self.evaluated = {**self.evaluated, **found}
        self.fresh = (self.step, found)
        if not self.owed or not self._has_line(found):
            self.writers.write(self.step, found)
        self.owed = []
        shown = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        self.progress.say(f"step {self.step}{note}: {shown}")

    def _has_line(self, found: dict[str, float]) -> bool:
        """Whether metrics.jsonl holds these metrics of this step: an evaluation is made up for once, and written once."""
        lines = read(self.workdir / "metrics.jsonl") if self.process == 0 else []
        return any(line["step"] == self.step and set(found) <= set(line) for line in lines)

    def _save(self) -> None:
        """Saves the state with everything that a resumed run needs; `metrics` are those of this very step."""
        if self.saved == self.step:
            return
        evaluated_at, fresh = self.fresh
        metadata = {
            "data_index": int(self.state.data_index),
            "metrics": fresh if evaluated_at == self.step else {},
            "owed": self.owed,
            "window": self.meter.state(),
            "last": self.last,
            "seconds": self.clock.seconds(),
            "rates": self.clock.rates[-100:],
            "config": json.loads(self.config.to_json_best_effort()),
        }
        self.checkpoints.save(self.step, self.state, summary.plain(metadata))
        self.saved = self.step

    def finish(self, status: str) -> dict[str, Any]:
        """Final evaluation, last checkpoint, curves and summary."""
        shown: dict[str, Any] = {}
        if status == "complete":
            status = self._complete()
        if status == "complete":
            show = option(self.task, "show")
            if show and self.process == 0:
                shown = show(evaluation_params(self.state), self.state.state, self.workdir)
        self.checkpoints.wait()
        self.progress.close()
        if self.process == 0:
            plots.plot_curves(self.workdir)
        return self._summarise(status, shown)

    def _complete(self) -> str:
        """Evaluates over the whole of every split and saves; "interrupted" where a signal ended the evaluation."""
        try:
            final = self.evaluators.everything(self.state, stop=self.stop.requested)
        except GivenUpError:
            self.owed = list(self.config.evaluators)
            return self._interrupt()
        if self.step > self.started or self.owed:
            self._evaluated(final, note=", whole split")
        self.evaluated = {**self.evaluated, **final}
        self._save()
        return "complete"

    def _summarise(self, status: str, shown: dict[str, Any]) -> dict[str, Any]:
        facts = option(self.task, "summary")
        own = {
            "status": status,
            "steps": self.step,
            **self.evaluated,
            "train": self.last,
            self.clock.unit: self.clock.median(),
            "seconds": self.clock.seconds(),
            "incidents": self.incidents.counts(),
            **summary.environment(),
        }
        extra = {**(facts() if facts and status == "complete" else {}), **(shown or {})}
        return summary.write_summary(self.workdir, {**{k: v for k, v in extra.items() if k not in own}, **own})

    def close(self, *, at_once: bool = False) -> None:
        """Ends what runs beside the loop; `at_once` does not wait for a save that is under way."""
        self.profiler.close()
        self.progress.close()
        self.writers.close()
        if not at_once:
            self.checkpoints.close()


def model_flops(task: Task, params: Any) -> float | None:
    """FLOPs of one step by the task, else 6 a parameter and token, else unknown."""
    from paperlab.training.paths import count

    tell, tokens = option(task, "flops_per_batch"), option(task, "tokens_per_batch")
    if tell is not None:
        return float(tell(params))
    return 6.0 * count(params) * tokens if tokens else None


def _evaluate_only(config: Any, workdir: Path, task: Task, ready: setup.Setup) -> dict[str, Any]:
    checkpoints = Checkpoints(workdir, config.checkpoint)
    restored: Restored | None = checkpoints.restore_latest(ready.shapes, set_aside=False)
    if restored is None:
        raise ConfigError(f"--eval_only: {workdir} has no good checkpoint")
    step = int(restored.tree.step)
    found = Evaluators(config, task, ready.mesh).everything(restored.tree)
    if jax.process_index() == 0:
        print(f"step {step}, whole splits:")
        for name, value in found.items():
            print(f"  {name:<32} {value:.6g}")
        print(describe(found), end="")
    return summary.plain({"status": "evaluated", "steps": step, **found})

"""The one training loop: a config, a work directory and a task in, a trained state and a summary out.

    set up -> resume or start -> steps, with reports, evaluations and checkpoints between -> final evaluation -> summary

The host runs one step ahead of what it reads: the metrics of step s are fetched when step s + 1 is under way. Before a
checkpoint is written the metrics so far are read, so that a state with NaN is never saved. Everything that is not a
function of (config, step, data index) is in the checkpoint; on the same mesh a resumed run equals an uninterrupted one
bit for bit.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from paperlab.errors import ConfigError
from paperlab.training import data, plots, setup, summary
from paperlab.training.checkpoint import Checkpoints, Restored, restore_params
from paperlab.training.evaluation import Evaluators
from paperlab.training.metrics import Clock, Meter, NonFiniteError
from paperlab.training.peaks import peak_flops
from paperlab.training.profiling import Profiler
from paperlab.training.progress import Progress, describe
from paperlab.training.protocol import Task, derived, option
from paperlab.training.signals import StopRequest
from paperlab.training.state import TrainState, evaluation_params
from paperlab.training.writers import Writers

OnStep = Callable[[int, TrainState], None]


def train(
    config: Any, workdir: str | Path, task: Task, *, eval_only: bool = False, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Trains to `config.train.steps`, resuming from the newest good checkpoint of `workdir`; returns the summary.

    Args:
      eval_only: evaluates the newest good checkpoint over whole splits, and writes nothing.
      on_step: called after every step with its number and the state, which is donated to the next step.

    Raises:
      ConfigError: what was asked for cannot be run.
      NonFiniteError: loss or gradient became NaN or infinite (the message names the step).
      CheckpointError: a checkpoint could not be written.
    """
    ready = setup.prepare(config, task)
    with jax.set_mesh(ready.mesh):
        if eval_only:
            return _evaluate_only(config, Path(workdir), task, ready)
        run = Run(config, Path(workdir), task, ready)
        try:
            status = run.steps(on_step)
            return run.finish(status)
        finally:
            run.close()


class Run:
    """What the loop holds in its hands."""

    def __init__(self, config: Any, workdir: Path, task: Task, ready: setup.Setup):
        self.config, self.workdir, self.task, self.ready = config, workdir, task, ready
        workdir.mkdir(parents=True, exist_ok=True)
        self.process = jax.process_index()
        if self.process == 0:
            table = setup.parameters_text(ready)
            (workdir / "parameters.txt").write_text(table, encoding="utf-8")
            print(table, flush=True)
        self.checkpoints = Checkpoints(workdir, config.checkpoint, say=self._say_plainly)
        self.profiler = Profiler(config.profile.steps, workdir)
        self.evaluators = Evaluators(config, task, ready.mesh)
        self.dataset = data.open_split(task, "train", ready.mesh)
        restored = self.checkpoints.restore_latest(ready.shapes)
        self.state = self._start() if restored is None else restored.tree
        notes = {} if restored is None else restored.metadata
        self.step = self.started = self.reported = int(self.state.step)
        self.saved = None if restored is None else self.step
        self.meter, self.clock = Meter(), self._clock(notes.get("seconds", 0.0))
        self.clock.rates = notes.get("rates", [])
        self.meter.restore(notes.get("window", {}))
        self.last: dict[str, float] = notes.get("last", {})
        self.evaluated: dict[str, float] = notes.get("metrics", {})
        self.fresh: dict[str, float] = {}
        self.progress = Progress(config.train.steps, process=self.process, start=self.step)
        self.writers = Writers(config, workdir, process=self.process, keep_until=self.step)
        if restored is not None:
            self.progress.say(f"resumed from step {self.step}")

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
        rows = jax.tree.leaves(self.ready.batch)[0].shape[0]
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
        train = self.config.train
        if self.step >= train.steps:
            return "complete"
        compiled = setup.compile_step(self.config, self.task, self.ready)
        key = jax.device_put(jax.random.key(self.config.seed), self.ready.placement.replicated)
        batches = data.global_batches(self.dataset, self.ready.mesh, start=int(self.state.data_index))
        self.clock.start(self.step)
        with StopRequest(train.log_every) as stop:
            for batch in batches:
                self.profiler.before(self.step)
                self.state, metrics = compiled(self.state, batch, key)
                self.profiler.after(self.step, metrics)
                self.step += 1
                self._push(metrics)
                if on_step is not None:
                    on_step(self.step, self.state)
                if self.step >= train.steps:
                    return "complete"
                self._between_steps()
                if stop.requested(self.step):
                    self.progress.say(f"{stop.name}: saving step {self.step}")
                    self._flush()
                    self._save()
                    return "interrupted"
        raise ConfigError(
            f"the training data ended at step {self.step} of {train.steps}: the task's train split must be endless"
        )

    def _push(self, metrics: Any) -> None:
        """Reads the metrics of the step before this one, and reports them where that one is a log step."""
        self._guarded(lambda: self.meter.push(self.step, metrics))
        self.progress.advance(self.step)
        self._report(self.step - 1)

    def _flush(self) -> None:
        self._guarded(self.meter.flush)
        self._report(self.step)

    def _guarded(self, read: Callable[[], None]) -> None:
        try:
            read()
        except NonFiniteError as error:
            where = f"the last checkpoint is of step {self.saved}" if self.saved is not None else "nothing was saved"
            raise NonFiniteError(f"{error}; {where}") from None

    def _report(self, step: int) -> None:
        due = step % self.config.train.log_every == 0 or step == self.config.train.steps
        if not due or step <= self.reported:
            return
        self.reported = step
        self.last = derived(self.task, self.meter.report())
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
            self._evaluated(self.evaluators.run(names, self.state))
        if save:
            self._save()
        self.clock.resume(since)

    def _evaluated(self, found: dict[str, float], *, note: str = "") -> None:
        self.evaluated = {**self.evaluated, **found}
        self.fresh = found
        self.writers.write(self.step, found)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        self.progress.say(f"step {self.step}{note}: {shown}")

    def _save(self) -> None:
        """Saves the state with everything that a resumed run needs; `metrics` are those of this very step."""
        if self.saved == self.step:
            return
        fresh, self.fresh = self.fresh, {}
        metadata = {
            "data_index": int(self.state.data_index),
            "metrics": fresh,
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
            self._flush()
            final = self.evaluators.everything(self.state)
            if self.step > self.started:
                self._evaluated(final, note=", whole split")
            self.evaluated = {**self.evaluated, **final}
            self._save()
            show = option(self.task, "show")
            if show and self.process == 0:
                shown = show(evaluation_params(self.state), self.state.state, self.workdir)
        self.checkpoints.wait()
        self.progress.close()
        if self.process == 0:
            plots.plot_curves(self.workdir)
        return self._summarise(status, shown)

    def _summarise(self, status: str, shown: dict[str, Any]) -> dict[str, Any]:
        facts = option(self.task, "summary")
        own = {
            "status": status,
            "steps": self.step,
            **self.evaluated,
            "train": self.last,
            self.clock.unit: self.clock.median(),
            "seconds": self.clock.seconds(),
            **summary.environment(),
        }
        extra = {**(facts() if facts and status == "complete" else {}), **(shown or {})}
        return summary.write_summary(self.workdir, {**{k: v for k, v in extra.items() if k not in own}, **own})

    def close(self) -> None:
        self.profiler.close()
        self.progress.close()
        self.writers.close()
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

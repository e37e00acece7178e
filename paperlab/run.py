"""The front door: an experiment file and overrides in, a trained model and a work directory out.

    python -m paperlab.run --config=experiments/gla.py[:variant] [--config.section.field=value ...] [--workdir=DIR]

    --show            print the resolved config and the parameter table, run nothing
    --dry_run         compile the training step for --devices=N fake devices; print shardings, FLOPs and bytes per device
    --eval_only       evaluate the newest checkpoint

Several processes are one run. Inside Slurm's srun, mpirun, a JobSet (launch/README.md) and on GKE TPU pods they find each other
by themselves; process 0 alone writes, and where one fails or is lost, all end.

    --coordinator=HOST:PORT --processes=N --process=I     say it, where no launcher does
    --distributed, --no_distributed     insist on several processes, or on one, whatever the environment says
    --start_timeout=300    seconds within which all must have come
    --lost_timeout=100     seconds after which a machine that has fallen silent counts as lost (a dead process does at once)

Several values for one field make a sweep: `--config.optim.lr=1e-3,3e-3 --config.seed=0,1` runs four, one after another, each in
its own work directory, and ends with one table (text fields: give the flag several times). The same command again resumes what
is unfinished.

SIGTERM, SIGUSR1 and Ctrl-C finish the step under way and save; a second Ctrl-C stops at once.

Exit status: 0 done, 1 failed, 2 asked for something that cannot be run, 75 interrupted with all saved that there was to save
(run it again to go on), 130 stopped at once. Of several processes all end with the status of the one that failed, 1 where one
was lost (134 where jax's own runtime saw it first).
"""

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paperlab import distributed
from paperlab import workdir as workdirs
from paperlab.commandline import close_output, describe, print_any_text
from paperlab.config import mathematics, to_json
from paperlab.distributed import agreement
from paperlab.errors import ConfigError
from paperlab.flags import expand, parse_flags
from paperlab.heap import keep_freed_memory
from paperlab.training import signals

INTERRUPTED, AT_ONCE = 75, 130


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, runs what it asks for, and returns the exit status."""
    print_any_text()
    try:
        with signals.at_once():
            status = _run(sys.argv[1:] if argv is None else argv)
    except signals.Interrupted as signal:
        status = _tell(signal, f"{signal}: stopped, with nothing to save", INTERRUPTED)
    except KeyboardInterrupt as error:
        status = _tell(error, "stopped at once; the checkpoints that were complete are kept", AT_ONCE)
    except BaseException as error:
        distributed.fail(error, f"{type(error).__name__}: {error}".split("\n")[0], 1)
        if distributed.processes() > 1:  # a way out through jax's exit would wait for processes that have gone
            traceback.print_exc()
            distributed.leave(1)
        raise
    distributed.leave(status)
    return status


def _run(argv: list[str]) -> int:
    try:
        flags, overrides = parse_flags(argv, __doc__ or "")
        place = distributed.find(flags.distributed, flags.coordinator, flags.processes, flags.process)
        if place is not None and not flags.dry_run:
            distributed.start(place, start_timeout=flags.start_timeout, lost_timeout=flags.lost_timeout)
        points = list(expand(flags.config, overrides))
        if len(points) > 1 and (flags.show or flags.dry_run):
            raise ConfigError("a sweep has no --show or --dry_run: give each field one value")
        if len(points) == 1:
            return status_of(launch(flags, *points[0]))
        return sweep(flags, points)
    except Exception as error:
        if "--debug" in argv:
            raise
        return _tell(error, *describe(error))


def _tell(error: BaseException, line: str, status: int) -> int:
    """The last line; of several processes one says it."""
    if isinstance(error, BrokenPipeError):
        close_output()
    if distributed.fail(error, line, status):
        print(line, file=sys.stderr)
    return status


def launch(flags: argparse.Namespace, config: ConfigDict, overrides: dict[str, str]) -> dict[str, Any]:
    """Runs one resolved config; returns its summary (empty for --show and --dry_run)."""
    start_jax(flags)
    from paperlab import devices

    print(devices.describe(), flush=True)
    devices.warn_if_accelerator_unused()
    from paperlab.discovery import find

    if flags.show or flags.dry_run:
        from paperlab.training import dry_run

        task = find("tasks", config.task.name).make(config)
        if flags.show:
            print(to_json(config))
            dry_run.show(config, task)
        else:
            dry_run.compile_step(config, task)
        return {}
    workdir = flags.workdir or workdirs.default_path(config)
    agreement.same_mathematics({**mathematics(config), "train.steps": config.train.steps, "workdir": str(workdir)})
    distributed.working_in(workdir)
    if flags.eval_only and not (workdir / "config.json").is_file():
        raise ConfigError(f"--eval_only: there is no run in {workdir}; name one with --workdir")
    if flags.eval_only:
        workdirs.refuse_other_mathematics(workdir, workdirs.read_config(workdir), config)
        return _trained(config, workdir, _ready_task(config), eval_only=True)
    if config.init_from and not (workdir / "config.json").is_file():
        _check_source(config.init_from)
    task = None if config.program else _ready_task(config)
    with workdirs.entered(workdir, config, overrides) as resumed:
        agreement.same_directory(workdir)
        print(f"work directory: {workdir}" + (" (continued)" if resumed else ""), flush=True)
        return _own_program(config, workdir) if task is None else _trained(config, workdir, task)


def _check_source(init_from: str) -> None:
    try:
        workdirs.read_config(Path(init_from))
    except ConfigError as error:
        raise ConfigError(f"config.init_from={init_from}: {error}") from error


def _ready_task(config: ConfigDict) -> Any:
    """The task, with the data of every split opened: what is wrong with them is said before anything is made."""
    from paperlab.discovery import find

    task = find("tasks", config.task.name).make(config)
    for split in dict.fromkeys(["train", *(evaluator.split for evaluator in config.evaluators.values())]):
        task.data(split)
    return task


def _trained(config: ConfigDict, workdir: Path, task: Any, *, eval_only: bool = False) -> dict[str, Any]:
    from paperlab.training.loop import train

    summary = train(config, workdir, task, eval_only=eval_only)
    print_summary(summary, config.checkpoint.best_metric)
    return {**summary, "workdir": str(workdir)}


def print_summary(summary: dict[str, Any], metric: str) -> None:
    """The headline metric beside what a reader would compare it with, where the task says what that is."""
    import jax

    unit = metric.partition("_")[2]
    rows = {
        name.removesuffix(f"_{unit}").replace("9", " -9"): value
        for name, value in summary.get("baselines", {}).items()
        if unit and name.endswith(unit) and "entropy" not in name
    }
    if metric not in summary or not rows or jax.process_index():
        return
    rows[f"this model ({metric})"] = summary[metric]
    print(f"\n{unit.replace('_', ' ')} on the validation split")
    for name, value in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"  {value:6.3f}  {name}")
    print(f"{summary['steps']} steps, {summary['seconds']:.0f} s", flush=True)


def _own_program(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    import json

    from paperlab.discovery import find
    from paperlab.training.writers import JsonLines

    with JsonLines(workdir / "metrics.jsonl") as writer:
        summary = find("programs", config.program).program(config, workdir, writer)
    workdirs.write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return {**summary, "workdir": str(workdir)}


def start_jax(flags: argparse.Namespace) -> None:
    """Settings that must precede the first use of a device: fake devices, the compilation cache."""
    import jax

    from paperlab.devices import keep_compiled_programs

    if flags.dry_run:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", flags.devices or 1)
    keep_compiled_programs()


def status_of(summary: dict[str, Any]) -> int:
    """The exit status that a summary stands for."""
    return INTERRUPTED if summary.get("status") == "interrupted" else 0


def sweep(flags: argparse.Namespace, points: list[tuple[ConfigDict, dict[str, str]]]) -> int:
    """Runs every point, goes on after one that fails, and prints one table; `--workdir` becomes their common parent."""
    parent = flags.workdir
    rows: list[tuple[list[str], dict[str, Any]]] = []
    failures: set[int] = set()
    varied = [path for path in points[0][1] if len({point[path] for _, point in points}) > 1]
    for number, (config, overrides) in enumerate(points, 1):
        label = ", ".join(f"{path}={overrides[path]}" for path in varied)
        print(f"\n[{number}/{len(points)}] {label}", flush=True)
        flags.workdir = parent and workdirs.default_path(config, str(parent))
        try:
            summary = launch(flags, config, overrides)
        except Exception as error:
            if flags.debug or distributed.processes() > 1:  # which may not agree on what failed
                raise
            line, status = describe(error)
            print(line, file=sys.stderr)
            failures.add(status)
            summary = {"status": "failed"}
        if status_of(summary):
            return INTERRUPTED
        rows.append(([overrides[path] for path in varied], summary))
    policy = points[0][0].checkpoint
    print_sweep(varied, rows, policy.best_metric, max if policy.best_mode == "max" else min)
    return min(failures, default=0)


def print_sweep(varied: list[str], rows: list[tuple[list[str], dict[str, Any]]], metric: str, best: Any = min) -> None:
    """One line a run, the best by `metric` marked."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="sweep")
    for name in [*varied, metric, "status", "work directory"]:
        table.add_column(name, overflow="fold")
    values = [summary.get(metric) for _, summary in rows]
    numbers = [value for value in values if isinstance(value, int | float)]
    for (chosen, summary), value in zip(rows, values, strict=True):
        shown = "-" if value is None else f"{value:.4f}" + (" *" if numbers and value == best(numbers) else "")
        table.add_row(*chosen, shown, str(summary.get("status", "")), str(summary.get("workdir", "")))
    Console().print(table)


if __name__ == "__main__":
    keep_freed_memory()
    status = main()
    if status == AT_ONCE:  # without waiting for a save in the background
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)

"""Several processes as one run: how they find each other, agree, speak with one voice, and end together.

jax's multi-controller runtime computes; here is only what surrounds it.

    place = find(...)             who the processes are                          cluster.py
    start(place, ...)             roll call, jax.distributed, one voice          lifeline.py, streams.py, relay.py
    values = gather(value)        small values of all processes
    fail(error line), leave()     all end together

In a run of one process, and in one whose processes another program has joined, all of this does nothing. Bounds: processes that
do not come, or a coordinator that does not answer, are reported after `start_timeout` seconds (300); a process that dies ends the
others at once; a machine that falls silent ends them after `lost_timeout` seconds (100). Exit status of those that end for
another's sake: that of the one which failed, 1 where one was lost, or 134 where jax's own runtime was quicker to end the process.
"""

import os
import sys
from pathlib import Path
from typing import Any

from paperlab.distributed.cluster import Place, by_jax, from_environment, from_flags
from paperlab.distributed.lifeline import Lifeline, answer_roll_call, end_now
from paperlab.distributed.relay import how_to_go_on
from paperlab.distributed.streams import divide, tell_relay
from paperlab.errors import ConfigError

__all__ = ["Place", "fail", "find", "gather", "leave", "process", "processes", "start", "working_in"]

START_TIMEOUT, LOST_TIMEOUT = 300.0, 100.0
COMMUNICATION = (
    "gloo",
    "nccl",
    "unavailable",
    "deadline_exceeded",
    "connection ",
    "coordination",
    "barrier",
    "socket closed",
)

_line: Lifeline | None = None
_workdir = ""
_silence = LOST_TIMEOUT
_failed = False


def find(
    wanted: bool | None, coordinator: str = "", number: int | None = None, this: int | None = None
) -> Place | None:
    """The place of this process, or None for a run of one process.

    Args:
      wanted: True: there must be several; False: one, whatever the environment says; None: as flags or environment say.
      coordinator, number, this: what `--coordinator`, `--processes` and `--process` said.

    Raises:
      ConfigError: what was said is not whole, or nothing says who the processes are although `wanted`.
    """
    if wanted is False:
        if coordinator or number is not None or this is not None:
            raise ConfigError("--no_distributed with --coordinator, --processes or --process: say one or the other")
        return None
    place = from_flags(coordinator, number, this) or from_environment(os.environ)
    return by_jax() if place is None and wanted else place


def start(place: Place, *, start_timeout: float = START_TIMEOUT, lost_timeout: float = LOST_TIMEOUT) -> None:
    """Joins this process to the others; before the first use of a device, and only once in a program.

    Raises:
      ConfigError: the processes did not find each other within `start_timeout` seconds (the message says which).
    """
    global _line, _silence
    if _line is not None:
        return
    for name, value in {"--start_timeout": start_timeout, "--lost_timeout": lost_timeout}.items():
        if not 1 <= value <= 86400:
            raise ConfigError(f"{name}={value:g}: must lie from 1 to 86400 seconds")
    peers = answer_roll_call(place.coordinator, place.process, place.processes, start_timeout)
    divide(place.process)
    _line = Lifeline(place.process, place.processes, peers, _end_for_another)
    _silence = lost_timeout
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # the trainer has its own way with SIGTERM
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(start_timeout),
        heartbeat_timeout_seconds=int(lost_timeout),
        shutdown_timeout_seconds=int(lost_timeout),
    )


def process() -> int:
    """The number of this process; 0 in a run of one."""
    return 0 if _line is None else _line.process


def processes() -> int:
    """How many processes the run has."""
    return 1 if _line is None else _line.processes


def gather(value: Any = None) -> list[Any]:
    """The JSON value of every process, in their order, on all of them; also a place where they wait for each other."""
    return [value] if _line is None else _line.gather(value)


def working_in(workdir: str | Path) -> None:
    """Notes where this run keeps its checkpoints, so that its last line can say from which step it goes on."""
    global _workdir
    _workdir = str(Path(workdir).absolute())
    if _line is not None:
        tell_relay("workdir", _workdir)


def fail(error: BaseException, line: str, status: int) -> bool:
    """Before a program with several processes ends in failure; returns whether this process is to print `line`.

    Waits first where the error looks like the end of another process: then the lifeline, or the runtime, knows which.
    """
    global _failed
    if _line is None:
        return True
    _failed = True
    lowered = str(error).lower()
    distant = not isinstance(error, ConfigError | OSError) and any(sign in lowered for sign in COMMUNICATION)
    return _line.fail(status, line.removeprefix("error: "), patience=_silence + 10 if distant else 0.0)


def leave(status: int) -> None:
    """The last act of a program with several processes: together where all went well, else at once. Does not return there."""
    global _line
    if _line is None:
        return
    if not _failed and status in (0, 75) and set(_line.gather(status)) == {status}:
        import jax

        _line.leave()
        tell_relay("done")
        jax.distributed.shutdown()
        _line = None
        return
    _line.leave()
    end_now(status or 1)


def _end_for_another(status: int, who: int, text: str) -> None:
    """Called by the lifeline: process `who` failed with `text`, or was lost ("")."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h\n")  # a progress bar hides the cursor
    if text and process() == 0:
        print(f"error: {f'process {who}: ' if who else ''}{text}", file=sys.stderr)
    elif not text and (process() == 0 or who == 0):
        print(f"error: process {who} was lost; {how_to_go_on(_workdir)}", file=sys.stderr)
    tell_relay("done")
    end_now(status)

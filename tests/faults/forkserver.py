"""Starts runs quickly: imports everything once and forks for each; from there on it is `python -m paperlab.run`.

    python -m tests.faults.forkserver < requests

A request is a line of JSON: {"argv", "out", "err", "pid", "status", "largest"}; the last three are files to write, but
`largest` is a limit on the size of files (bytes) or null. A keeper waits for each run and writes its exit status, that of
a signal as a negative number.
"""

import json
import os
import signal
import sys
import warnings
from typing import Any


def serve() -> list[str]:
    """Forks a keeper and a run for every request; returns only in the runs, with their arguments."""
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request = json.loads(line)
            run = os.fork()
            if run == 0:
                become(request)
                return request["argv"]
            tell(request["pid"], run)
            tell(request["status"], os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]))
            os._exit(0)
    os._exit(0)


def import_everything() -> None:
    """What a run imports sooner or later; nothing here starts a thread or a device, so a fork is sound."""
    import grain
    import jax.experimental.multihost_utils
    import matplotlib.backends.backend_agg
    import orbax.checkpoint

    import paperlab.run
    import paperlab.tasks.language_modelling
    import paperlab.training.loop

    del grain, jax, matplotlib, orbax, paperlab
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has started a thread: runs cannot be forked from here")
    warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)


def become(request: dict[str, Any]) -> None:
    """Makes this process what a shell would have started."""
    os.setsid()
    for number, (path, flags) in enumerate(
        [
            (os.devnull, os.O_RDONLY),
            (request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            (request["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        ]
    ):
        file = os.open(path, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    if request["largest"]:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"], resource.RLIM_INFINITY))


def tell(path: str, number: int) -> None:
    """Writes a number such that a reader sees all of it or nothing."""
    with open(f"{path}.part", "w") as out:
        out.write(str(number))
    os.replace(f"{path}.part", path)


if __name__ == "__main__":
    arguments = serve()
    from paperlab.run import main

    sys.exit(main(arguments))

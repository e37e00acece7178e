"""Between the C++ runtime's standard error and the person: lets through what it says, except what it says of other processes.

    python relay.py PROCESS < what the runtime writes

When the process that holds jax's coordination service dies, or one falls silent, the runtime ends this process on the spot
with a page of trace, and no Python runs any more. This program outlives it and says the one line that matters. It imports
nothing of paperlab or jax, and starts in some hundredths of a second.
"""

import os
import re
import signal
import sys
from pathlib import Path

MARK = "paperlab-relay:"  # begins a line that is for the relay itself
SIGNED = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\d+ (?P<file>[\w.]+):\d+\] ?(?P<text>.*)$")
OF_OTHERS = ("coordination_service", "preemption_sync_manager", "client.h", "client.cc", "service.cc", "error_util")
NOISE = re.compile(r"^\[Gloo\] Rank \d+ is connected to ")
SILENT = "stopped sending heartbeats"


class Relay:
    """Takes line by line what the runtime writes; `out` gets what is passed on."""

    def __init__(self, process: int, out=None):
        self.process, self.out = process, sys.stderr if out is None else out
        self.workdir = ""
        self.quiet = self.done = False
        self.lost: list[int] = []
        self._listed = False

    def line(self, text: str) -> None:
        """One line without its end."""
        if text.startswith(MARK):
            self._order(text.removeprefix(MARK))
            return
        signed = SIGNED.match(text)
        if signed:
            self.quiet = signed["file"].startswith(OF_OTHERS)
        if self._listed and re.fullmatch(r"[\d,\s]+", text):
            self.lost = self.lost or [int(number) for number in re.findall(r"\d+", text)]
        self._listed = SILENT in text
        if signed and text.startswith("F") and self.quiet and not self.done:
            self.fatal = True
        if not self.quiet and not NOISE.match(text):
            print(text, file=self.out, flush=True)

    fatal = False

    def _order(self, text: str) -> None:
        name, _, value = text.partition("=")
        if name == "workdir":
            self.workdir = value
        elif name == "done":
            self.done = True

    def end(self) -> None:
        """The runtime is gone; where it was for the sake of others, says which."""
        first = min(set(range(self.process + 1)) - set(self.lost))
        if not self.fatal or self.done or (self.lost and self.process != first):
            return
        who = ", ".join(map(str, self.lost)) or "0"
        what = "sent no heartbeats" if self.lost else "is gone, or its machine is"
        start = f"[process {self.process}] " if self.process else ""
        print(f"{start}error: {lost_line(who, what, self.workdir)}", file=self.out, flush=True)


def lost_line(who: str, what: str, workdir: str) -> str:
    """The one line about a lost process, and how to go on."""
    return f"process {who} was lost ({what}); {how_to_go_on(workdir)}"


def how_to_go_on(workdir: str) -> str:
    """From which step the same command goes on, from the names in the work directory."""
    if not workdir:
        return "nothing was saved yet: run the same command again"
    try:
        steps = [int(p.name) for p in (Path(workdir) / "checkpoints").iterdir() if p.name.isdecimal()]
    except OSError:
        steps = []
    return (
        f"the same command goes on from step {max(steps)}"
        if steps
        else "no step was saved yet: run the same command again"
    )


def main() -> None:
    """Until the last process that writes here has ended; signals that are meant for those leave the relay alone."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    relay = Relay(int(sys.argv[1]))
    with os.fdopen(0, encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            relay.line(line.rstrip("\r\n"))
    relay.end()


if __name__ == "__main__":
    main()

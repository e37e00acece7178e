"""Rounds of a campaign: which fault comes when follows from the seed; what became of the run is compared and recorded."""

import datetime
import json
import random
import shutil
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from paperlab import provenance
from paperlab.workdir import write_atomically
from tests.faults.ending import differences
from tests.faults.kinds import KINDS, WEIGHTS, Round, RoundError, can_mount
from tests.faults.processes import EVERY, STEPS, HangingError, Launcher

TITLE = "Runs of a tiny language model, killed, starved and damaged, against the run that nothing happened to"


class Campaign:
    """The uninterrupted run, half of another, and rounds that begin from nothing or from that half.

    Args:
      folder: where everything is done; a failed round leaves its work directory there.
      kinds: names of the faults to choose from; all of them without.
    """

    def __init__(self, folder: Path, launcher: Launcher, *, seed: int = 0, kinds: Sequence[str] = ()):
        self.folder, self.launcher, self.seed = folder, launcher, seed
        self.kinds = [name for name in KINDS if not kinds or name in kinds]
        folder.mkdir(parents=True, exist_ok=True)
        if "full_disk" in self.kinds and not can_mount(folder):
            self.kinds.remove("full_disk")
            print("full_disk is left out: no file system can be mounted here (it takes root)", flush=True)
        self.whole, self.half = folder / "whole", folder / "half"
        self.whole_seconds = 0.0

    def prepare(self) -> None:
        """Makes the uninterrupted run, and the half of one."""
        start = time.monotonic()
        process = self.launcher.start(self.whole)
        if process.wait() != 0:
            raise RoundError(f"the undisturbed run failed: {process.err.strip()[-300:]}")
        self.whole_seconds = time.monotonic() - start
        process, wanted = self.launcher.start(self.half), self.half / "checkpoints" / str(STEPS // EVERY // 2 * EVERY)
        process.until(wanted.is_dir)
        process.send(signal.SIGKILL)
        process.wait()

    def kind_of(self, number: int) -> str:
        """The fault of a round: every cycle has each of them, as often as `WEIGHTS` says, in an order of its own."""
        names = [name for name in self.kinds for _ in range(WEIGHTS.get(name, 1))]
        cycle, place = divmod(number, len(names))
        random.Random(f"{self.seed} cycle {cycle}").shuffle(names)
        return names[place]

    def run(self, number: int) -> dict[str, Any]:
        """Runs one round: {"round", "kind", "seconds", "what"}; "what" is "" where the run survived."""
        kind = self.kind_of(number)
        rng = random.Random(f"{self.seed} round {number}")
        place = self.folder / "rounds" / str(number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        one = Round(self.launcher, place / "run", self.half, self.whole_seconds, rng)
        start = time.monotonic()
        try:
            KINDS[kind](one)
            found = differences(one.workdir, self.whole, metrics_from=one.metrics_from)
        except (RoundError, HangingError, OSError, ValueError, RuntimeError) as error:
            found = [f"{type(error).__name__}: {error}"]
        seconds = time.monotonic() - start
        if not found:
            shutil.rmtree(place)
        what = f"{'; '.join(found)} [{', '.join(one.notes)}]" if found else ""
        return {"round": number, "kind": kind, "seconds": round(seconds, 2), "what": what, "notes": one.notes}


def document(
    rounds: Iterable[dict[str, Any]], *, seed: int, seconds: float, version: tuple[str, bool]
) -> dict[str, Any]:
    """The record of a campaign; `version` is (commit, dirty) of the code when it began."""
    rounds = list(rounds)
    kinds: dict[str, dict[str, int]] = {}
    for one in rounds:
        counts = kinds.setdefault(one["kind"], {"rounds": 0, "recovered": 0})
        counts["rounds"] += 1
        counts["recovered"] += not one["what"]
    commit, dirty = version
    return {
        "title": TITLE,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "device": provenance.device(),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "rounds": len(rounds),
        "seed": seed,
        "passed": sum(not one["what"] for one in rounds),
        "seconds": round(seconds, 1),
        "what": {name: KINDS[name].__doc__ for name in sorted(kinds)},
        "kinds": dict(sorted(kinds.items())),
        "failures": [{name: one[name] for name in ("round", "kind", "what")} for one in rounds if one["what"]],
    }


def write(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record, indent=1) + "\n")

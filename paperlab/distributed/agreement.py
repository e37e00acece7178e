"""What must be the same on all processes before they compute together: the configuration, and the work directory."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paperlab import distributed
from paperlab.config import differences
from paperlab.errors import ConfigError

SEEN_WITHIN = 10.0  # seconds that a network file system may take to show a new file


def same_mathematics(mine: Mapping[str, Any]) -> None:
    """Raises ConfigError on all processes where one of them was given another configuration (`config.mathematics`)."""
    all_of_them = distributed.gather(dict(mine))
    for who, given in enumerate(all_of_them):
        different = differences(all_of_them[0], given)
        if different:
            shown = "; ".join(f"config.{name}: {a!r} and {b!r}" for name, (a, b) in list(different.items())[:3])
            raise ConfigError(
                f"process {who} has another configuration than process 0 ({shown}): give all the same command and files"
            )


def same_directory(workdir: Path) -> None:
    """Raises ConfigError on all processes where one does not see in `workdir` what process 0 has just written there."""
    if distributed.processes() == 1:
        return
    wanted = distributed.gather(_fingerprint(workdir) if distributed.process() == 0 else None)[0]
    until = time.monotonic() + SEEN_WITHIN
    while (seen := _fingerprint(workdir) == wanted) is False and time.monotonic() < until:
        time.sleep(0.1)
    blind = [str(who) for who, sees in enumerate(distributed.gather(seen)) if not sees]
    if blind:
        raise ConfigError(
            f"--workdir: {workdir} is not the same directory on process {', '.join(blind)} as on process 0: name one on a "
            "file system that all share"
        )


def _fingerprint(workdir: Path) -> str:
    """Of the note of this very invocation, which holds its date."""
    try:
        return hashlib.sha256((workdir / "overrides.json").read_bytes()).hexdigest()
    except OSError:
        return ""

"""What a run has become: every leaf of its last state, its metrics and its summary, without the times."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.training import paths
from paperlab.training.checkpoint import restore
from paperlab.training.restore import read_metadata
from tests.faults.processes import STEPS

TIMES = {"tokens_per_second", "steps_per_second", "seconds", "mfu", "eta", "data_wait"}
NOTES = ("step", "data_index", "metrics", "window", "last", "config")  # of a checkpoint, apart from its leaves


def leaves(checkpoint: Path) -> dict[str, np.ndarray]:
    """{path: array} of everything that a checkpoint holds, its digests verified."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    stored = read_metadata(checkpoint)["leaves"]
    shapes = {name: jax.ShapeDtypeStruct(tuple(s), jnp.dtype(d), sharding=here) for name, (s, d) in stored.items()}
    return {name: np.asarray(x) for name, x in paths.flatten(restore(checkpoint, paths.nest(shapes)).tree).items()}


def lines(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times; every line must be whole."""
    texts = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(text).items() if name not in TIMES} for text in texts]


def summary(workdir: Path) -> dict[str, Any]:
    """summary.json without the times."""
    found = json.loads((workdir / "summary.json").read_text())
    return {name: value for name, value in found.items() if name not in TIMES}


def differences(workdir: Path, whole: Path, *, metrics_from: int = 0) -> list[str]:
    """What tells a run apart from an uninterrupted one, in words; [] when nothing does.

    Args:
      metrics_from: lines of metrics.jsonl up to this step were damaged from outside and need not be there.
    """
    found = []
    if not (workdir / "checkpoints" / str(STEPS)).is_dir():
        return [f"there is no checkpoint of step {STEPS}"]
    got, want = (leaves(place / "checkpoints" / str(STEPS)) for place in (workdir, whole))
    if got.keys() != want.keys():
        found.append(f"other leaves: {sorted(got.keys() ^ want.keys())}")
    different = [name for name in got.keys() & want.keys() if got[name].tobytes() != want[name].tobytes()]
    if different:
        found.append(f"{len(different)} of {len(want)} leaves differ, {min(different)} among them")
    notes, expected = (read_metadata(place / "checkpoints" / str(STEPS)) for place in (workdir, whole))
    # asked to stop in the last evaluation, a run saves without it, and makes up for it when it goes on
    owed = {"metrics"} if notes.get("owed") else set()
    compared = [name for name in NOTES if name not in owed]
    found += [f"{name} in the last checkpoint differs" for name in compared if notes.get(name) != expected.get(name)]
    mine, theirs = ([line for line in lines(place) if line["step"] > metrics_from] for place in (workdir, whole))
    if mine != theirs:
        found.append(f"metrics.jsonl differs: {len(mine)} lines for {len(theirs)}")
    if summary(workdir) != summary(whole):
        found.append("summary.json differs")
    rest = [
        path.name for path in workdir.rglob("*") if path.name.endswith(".part") or "orbax-checkpoint-tmp" in path.name
    ]
    return found + ([f"left behind: {', '.join(rest[:3])}"] if rest else [])

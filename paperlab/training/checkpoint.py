"""Checkpoints that are whole or not there, and that prove it.

    checkpoints/<step>/state/     the train state, each leaf under its path (orbax, OCDBT), and `digests`, one a leaf
    checkpoints/<step>/metadata/  JSON: step, data_index, metrics, config, leaves {path: [shape, dtype]} ...

A checkpoint is written beside its place in the background and renamed at the end, digests and metadata with it; older
ones go only when it is on the disk for good. On restore every leaf is digested again: a damaged, half-written or missing
one is reported in one line, set aside as `<step>.damaged`, and the one before it is used. When none is good nothing is
touched and nothing is trained: what to do with what is left is for a person to say.
"""

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paperlab.disk import checksum, flush_to_disk, why
from paperlab.errors import ConfigError
from paperlab.training import paths
from paperlab.training.digest import digests
from paperlab.training.restore import (
    CheckpointError,
    Restored,
    all_steps,
    read_metadata,
    restore,
    restore_params,
    restore_state,
    storable,
    with_elements,
)
from paperlab.training.retention import kept
from paperlab.training.storage import import_orbax

Tree = Any
DAMAGED = ".damaged"  # after the step, in the name of what was set aside

__all__ = ["CheckpointError", "Checkpoints", "Restored", "all_steps", "restore", "restore_params", "restore_state"]


class Checkpoints:
    """The checkpoints of one run: saves in the background, keeps what the policy says, restores the newest good one."""

    def __init__(self, workdir: Path, policy: Any, *, say: Callable[[str], None] = print):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.policy, self.say = policy, say
        self._saver: Any = None
        self._last: int | None = None

    def save(self, step: int, tree: Tree, metadata: dict[str, Any]) -> None:
        """Starts saving; returns once the devices' memory has been copied. The save before must have come out well."""
        ocp = import_orbax()
        self.wait()
        flat = storable(tree)
        leaves = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in flat.items()}
        metadata = {"step": step, **metadata, "leaves": leaves}
        items = {
            "state": ocp.args.PyTreeSave(paths.nest({**with_elements(flat), "digests": digests(list(flat.values()))}))
        }
        self._last = step
        try:
            self._saver = self._saver or ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            items["metadata"] = ocp.args.JsonSave({"metadata": metadata, "sha256": checksum(metadata)})
            self._saver.save(self.directory / str(step), args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._unwritten(step, error) from error
        if not self.policy.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Waits for the save in progress and drops what the policy does not keep.

        Raises:
          CheckpointError: it could not be written; the earlier ones are untouched.
        """
        if self._last is None:
            return
        step, self._last = self._last, None
        try:
            self._saver.wait_until_finished()
            if jax.process_index() == 0:
                flush_to_disk(self.directory / str(step))
        except Exception as error:
            raise self._unwritten(step, error) from error
        self._prune()

    def close(self) -> None:
        self.wait()
        if self._saver is not None:
            self._saver.close()
            self._saver = None

    def restore_latest(self, target: Tree, *, set_aside: bool = True) -> Restored | None:
        """The newest good checkpoint in the layout of `target` (shapes with shardings), or None where none was written.

        Damaged ones are reported, and set aside under another name, since the run will come past their step again; with
        `set_aside=False` the directory is only read.

        Raises:
          ConfigError: a sound checkpoint holds other leaves than `target`, or checkpoints were written but none is good.
        """
        if set_aside:
            self._sweep()
        damaged: dict[int, CheckpointError] = {}
        for step in reversed(_steps_everywhere(self.directory)):
            try:
                restored = restore(self.directory / str(step), target)
            except CheckpointError as error:
                damaged[step] = error
                continue
            for lost, why_lost in damaged.items():
                name = self._set_aside(lost) if set_aside else ""
                self.say(
                    f"{why_lost}; " + (f"set aside as {name}, " if name else "") + f"the one of step {step} is used"
                )
            return restored
        for why_lost in damaged.values():
            self.say(str(why_lost))
        aside = sorted(path.name for path in self.directory.glob(f"*{DAMAGED}*"))
        if damaged or aside:
            left = ", ".join([*map(str, sorted(damaged)), *aside])
            raise ConfigError(
                f"{self.directory} has no good checkpoint left (damaged: {left}); nothing was changed: put a sound copy there, "
                "remove the directory to train from the start, or name another --workdir"
            )
        return None

    def _set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, over nothing that was set aside before; returns the new name, on process 0."""
        if jax.process_index() != 0:
            return ""
        names = (f"{step}{DAMAGED}{number or ''}" for number in itertools.count())
        name = next(name for name in names if not (self.directory / name).exists())
        try:
            (self.directory / str(step)).rename(self.directory / name)
        except OSError as error:
            raise CheckpointError(f"{self.directory / str(step)} could not be set aside: {why(error)}") from error
        return name

    def _sweep(self, patience: float = 0.0) -> None:
        """Removes what an interrupted save left behind.

        Of a save that failed just now other threads may write on for a moment, and make the folder again: it is removed
        until it stays away for a tenth of a second, for `patience` seconds at most. What is left even then goes when the
        run is taken up again.
        """
        if jax.process_index() != 0 or not self.directory.is_dir():
            return
        until, away = time.monotonic() + patience, 0
        while away < 5:
            left = list(self.directory.glob("*.orbax-checkpoint-tmp*"))
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            if time.monotonic() >= until:
                return
            away = 0 if left else away + 1
            time.sleep(0.02)

    def _unwritten(self, step: int, error: Exception) -> CheckpointError:
        """What to raise when a save failed; its half-written files go, so that the disk has room again."""
        self._sweep(patience=2.0)
        return CheckpointError(f"checkpoint {self.directory / str(step)} could not be written: {why(error)}")

    def _prune(self) -> None:
        if jax.process_index() != 0:
            return
        steps = all_steps(self.directory)
        metrics = {step: _metrics(self.directory / str(step)) for step in steps}
        for step in set(steps) - kept(metrics, self.policy):
            doomed = self.directory / f"{step}.orbax-checkpoint-tmp-deleted"
            try:
                (self.directory / str(step)).rename(doomed)
            except OSError as error:
                raise CheckpointError(f"{self.directory / str(step)} could not be removed: {why(error)}") from error
            shutil.rmtree(doomed, ignore_errors=True)


def _steps_everywhere(directory: Path) -> list[int]:
    """`all_steps` as process 0 sees them: on a network file system others may see a moment earlier or later."""
    steps = all_steps(directory)
    if jax.process_count() == 1:
        return steps
    from jax.experimental import multihost_utils

    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    mine = np.resize(np.asarray(steps or [0], np.int32), count)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(mine)]


def _metrics(path: Path) -> dict[str, float]:
    try:
        return read_metadata(path).get("metrics", {})
    except (CheckpointError, ConfigError):
        return {}

"""Checkpoints that are whole or not there, and that prove it.

    checkpoints/<step>/state/     the train state, each leaf under its path (orbax, OCDBT), and `digests`, one a leaf
    checkpoints/<step>/metadata/  JSON: step, data_index, metrics, config, leaves {path: [shape, dtype]} ...

A checkpoint is written beside its place in the background and renamed at the end, digests and metadata with it. On
restore every leaf is digested again: a damaged, half-written or missing one is reported in one line and the one before
it is used.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from paperlab.training import paths
from paperlab.training.digest import digests
from paperlab.training.restore import (
    CheckpointError,
    Restored,
    all_steps,
    import_orbax,
    one_line,
    read_metadata,
    restore,
    restore_params,
    sha256,
    storable,
    with_elements,
)
from paperlab.training.retention import kept

Tree = Any

__all__ = ["CheckpointError", "Checkpoints", "Restored", "all_steps", "restore", "restore_params"]


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
            items["metadata"] = ocp.args.JsonSave({"metadata": metadata, "sha256": sha256(metadata)})
            self._saver.save(self.directory / str(step), args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise _write_error(self.directory / str(step), error) from error
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
        except Exception as error:
            raise _write_error(self.directory / str(step), error) from error
        self._prune()

    def close(self) -> None:
        self.wait()
        if self._saver is not None:
            self._saver.close()
            self._saver = None

    def restore_latest(self, target: Tree, *, set_aside: bool = True) -> Restored | None:
        """The newest good checkpoint in the layout of `target` (shapes with shardings), or None.

        Damaged ones are reported, and set aside under another name, since the run will come past their step again; with
        `set_aside=False` the directory is only read.

        Raises:
          ConfigError: a sound checkpoint holds other leaves than `target`.
        """
        if set_aside:
            self._sweep()
        found = all_steps(self.directory)
        for step in reversed(found):
            try:
                return restore(self.directory / str(step), target)
            except CheckpointError as error:
                self.say(f"{error}; the one before it is used")
                if set_aside:
                    self._set_aside(step)
                if step == found[0]:
                    self.say("no good checkpoint is left")
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self.directory / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / str(step)).rename(aside)

    def _sweep(self) -> None:
        """Removes what an interrupted save left behind."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        if jax.process_index() != 0:
            return
        steps = all_steps(self.directory)
        metrics = {step: _metrics(self.directory / str(step)) for step in steps}
        for step in set(steps) - kept(metrics, self.policy):
            doomed = self.directory / f"{step}.orbax-checkpoint-tmp-deleted"
            (self.directory / str(step)).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _metrics(path: Path) -> dict[str, float]:
    try:
        return read_metadata(path).get("metrics", {})
    except CheckpointError:
        return {}


def _write_error(path: Path, error: Exception) -> CheckpointError:
    text = one_line(error)
    full = any(sign in text for sign in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC", "Disk quota"))
    reason = "the disk is full; free some space and run the same command again" if full else text
    return CheckpointError(f"checkpoint {path} could not be written: {reason}")

"""Checkpoints that are whole or not there, and that prove it.

    checkpoints/<step>/state/     the train state, each leaf under its path (orbax, OCDBT), and `digests`, one a leaf
    checkpoints/<step>/metadata/  JSON: step, data_index, metrics, config, leaves {path: [shape, dtype]} ...

A checkpoint is written beside its place in the background and renamed at the end, digests and metadata with it. On
restore every leaf is digested again: a damaged, half-written or missing one is reported in one line and the one before
it is used.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.config import ConfigError
from paperlab.training import paths
from paperlab.training.digest import digests
from paperlab.training.retention import kept

Tree = Any


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message is one line."""


class Restored(NamedTuple):
    """A verified tree, and the metadata saved with it."""

    tree: Tree
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: saves in the background, keeps what the policy says, restores the newest good one."""

    def __init__(self, workdir: Path, policy: Any, *, say: Callable[[str], None] = print):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.policy, self.say = policy, say
        self._saver: Any = None
        self._last: int | None = None

    def save(self, step: int, tree: Tree, metadata: dict[str, Any]) -> None:
        """Starts saving; returns once the devices' memory has been copied. The save before must have come out well."""
        import orbax.checkpoint as ocp

        self.wait()
        flat = _storable(tree)
        leaves = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in flat.items()}
        metadata = {"step": step, **metadata, "leaves": leaves}
        items = {"state": ocp.args.PyTreeSave(paths.nest({**_stored(flat), "digests": digests(list(flat.values()))}))}
        self._last = step
        try:
            self._saver = self._saver or ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            items["metadata"] = ocp.args.JsonSave({"metadata": metadata, "sha256": _sha256(metadata)})
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

    def restore_latest(self, target: Tree) -> Restored | None:
        """The newest good checkpoint in the layout of `target` (shapes with shardings), or None.

        Damaged ones are reported, and set aside under another name, since the run will come past their step again.

        Raises:
          ConfigError: a sound checkpoint holds other leaves than `target`.
        """
        self._sweep()
        for step in reversed(all_steps(self.directory)):
            try:
                return restore(self.directory / str(step), target)
            except CheckpointError as error:
                self.say(f"{error}; it is set aside and the one before it is used")
                self._set_aside(step)
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


def all_steps(directory: Path) -> list[int]:
    """Steps that have a finished checkpoint, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and p.is_dir())


def restore(path: Path, target: Tree) -> Restored:
    """Reads and verifies one checkpoint.

    Raises:
      CheckpointError: it is damaged.  ConfigError: it is sound, but not of this shape.
    """
    metadata = read_metadata(path)
    flat = _storable(target)
    _same_leaves(path, metadata["leaves"], flat)
    values = _read(path, flat, metadata["leaves"])
    return Restored(_unstorable(target, values), metadata)


def restore_params(workdir: Path, *, step: int | None = None, target: Tree | None = None) -> tuple[Tree, int]:
    """(params, step) of the newest good checkpoint of a run, or of `step`; the moving average where the run kept one.

    Args:
      target: shapes with shardings to restore onto; without it, onto the default device.

    Raises:
      ConfigError: there is no such checkpoint, or its parameters are not of this shape.
      CheckpointError: the one that was asked for is damaged.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    steps = all_steps(directory)
    if not steps or (step is not None and step not in steps):
        have = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
        raise ConfigError(f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}: {have}")
    damage: list[str] = []
    for candidate in [step] if step is not None else reversed(steps):
        try:
            return _params_of(directory / str(candidate), target), candidate
        except CheckpointError as error:
            if step is not None:
                raise
            damage.append(str(error))
    raise ConfigError(f"{workdir} has no good checkpoint: {'; '.join(damage)}")


def _params_of(path: Path, target: Tree | None) -> Tree:
    leaves = read_metadata(path)["leaves"]
    part = "ema/" if any(name.startswith("ema/") for name in leaves) else "params/"
    stored = {name: spec for name, spec in leaves.items() if name.startswith(part)}
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if target is None:
        shapes = {name: jax.ShapeDtypeStruct(tuple(s), jnp.dtype(d), sharding=here) for name, (s, d) in stored.items()}
    else:
        shapes = {part + name: leaf for name, leaf in paths.flatten(target).items()}
        _same_leaves(path, stored, shapes)
    values = _read(path, shapes, leaves)
    values = {name.removeprefix(part): value for name, value in values.items()}
    return paths.nest(values) if target is None else paths.map_with_name(lambda name, _: values[name], target)


def read_metadata(path: Path) -> dict[str, Any]:
    """The verified metadata of a checkpoint. Raises CheckpointError when it is missing or damaged."""
    try:
        stored = json.loads((path / "metadata" / "metadata").read_text(encoding="utf-8"))
        metadata = stored["metadata"]
        if stored["sha256"] != _sha256(metadata):
            raise ValueError("its digest does not match")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged (metadata: {_one_line(error)})") from error
    return metadata


def _read(path: Path, wanted: dict[str, Any], leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves of `wanted` {path: shape with sharding}, verified against the stored digests."""
    import orbax.checkpoint as ocp

    whole = next(iter(wanted.values())).sharding
    copied = whole if isinstance(whole, jax.sharding.SingleDeviceSharding) else _replicated(whole)
    count = jax.ShapeDtypeStruct((len(leaves),), jnp.uint32, sharding=copied)
    item = paths.nest({**_stored(wanted), "digests": count})
    args = ocp.args.PyTreeRestore(item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            tree = reader.restore(path, args=ocp.args.Composite(state=args)).state
        values = paths.flatten(tree)
        stored = np.asarray(values.pop("digests"))
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({_one_line(error)})") from error
    empty = {n: jnp.zeros(x.shape, x.dtype, device=x.sharding) for n, x in wanted.items() if 0 in x.shape}
    values = {name: {**values, **empty}[name] for name in wanted}
    position = {name: i for i, name in enumerate(leaves)}
    got = np.asarray(digests(list(values.values())))
    wrong = [name for name, digest in zip(values, got, strict=True) if digest != stored[position[name]]]
    if wrong:
        raise CheckpointError(
            f"checkpoint {path} is damaged (wrong digest: {', '.join(wrong[:3])}, {len(wrong)} in all)"
        )
    return values


def _same_leaves(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    want = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in wanted.items()}
    different = [
        f"{name}: {_shown(stored.get(name))} there, {_shown(want.get(name))} here"
        for name in dict.fromkeys([*stored, *want])
        if stored.get(name) != want.get(name)
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise ConfigError(f"checkpoint {path} is of another model or optimiser ({'; '.join(different[:3])}{more})")


def _shown(spec: list | None) -> str:
    return "nothing" if spec is None else f"{spec[1]}{spec[0]}"


def _storable(tree: Tree) -> dict[str, Any]:
    """{path: leaf} with random keys as their numbers."""

    def numbers(leaf: Any) -> Any:
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=_replicated(leaf.sharding))
        return jax.random.key_data(leaf)

    return {name: numbers(leaf) for name, leaf in paths.flatten(tree).items()}


def _unstorable(target: Tree, values: dict[str, Any]) -> Tree:
    def restored(name: str, leaf: Any) -> Any:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(values[name]) if is_key else values[name]

    return paths.map_with_name(restored, target)


def _stored(flat: dict[str, Any]) -> dict[str, Any]:
    """Orbax refuses arrays without elements; they are made anew."""
    return {name: leaf for name, leaf in flat.items() if 0 not in leaf.shape}


def _replicated(sharding: Any) -> Any:
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())


def _metrics(path: Path) -> dict[str, float]:
    try:
        return read_metadata(path).get("metrics", {})
    except CheckpointError:
        return {}


def _sha256(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _write_error(path: Path, error: Exception) -> CheckpointError:
    text = _one_line(error)
    full = any(sign in text for sign in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC", "Disk quota"))
    reason = "the disk is full; free some space and run the same command again" if full else text
    return CheckpointError(f"checkpoint {path} could not be written: {reason}")


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

"""Reading a checkpoint, and making sure that it is what was written.

Every leaf is digested again and compared with what was stored beside it; the metadata carries its own digest. Reasons
that lie with the machine (memory, permissions) are not taken for damage.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.disk import checksum
from paperlab.errors import ConfigError
from paperlab.training import paths
from paperlab.training.digest import digests
from paperlab.training.storage import forget_failed_reads, read_arrays

Tree = Any


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message is one line."""


class Restored(NamedTuple):
    """A verified tree, and the metadata saved with it."""

    tree: Tree
    metadata: dict[str, Any]


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
    flat = storable(target)
    metadata = _metadata(path, shared=_shared(flat))
    _same_leaves(path, metadata["leaves"], flat)
    values = _read(path, flat, metadata["leaves"])
    return Restored(unstorable(target, values), metadata)


def restore_params(workdir: Path, *, step: int | None = None, target: Tree | None = None) -> tuple[Tree, int]:
    """(params, step) of the newest good checkpoint of a run, or of `step`; the moving average where the run kept one.

    Args:
      target: shapes with shardings to restore onto; without it, onto the default device.

    Raises:
      ConfigError: there is no such checkpoint, or its parameters are not of this shape.
      CheckpointError: the one that was asked for is damaged.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    return _newest(directory, step, lambda path: _params_of(path, target))


def restore_state(workdir: Path, *, step: int | None = None) -> tuple[Tree, int]:
    """(state, step): what the task carries and gradients don't train, such as statistics of batches; {} where it carries nothing.

    On the default device; it raises what `restore_params` raises.
    """
    return _newest(Path(workdir).absolute() / "checkpoints", step, partial(_part_of, part="state/", target=None))


def _newest(directory: Path, step: int | None, read: Callable[[Path], Tree]) -> tuple[Tree, int]:
    """(what `read` makes of it, its step) of the newest good checkpoint, or of that of `step`."""
    workdir, steps = directory.parent, all_steps(directory)
    if not steps or (step is not None and step not in steps):
        have = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
        raise ConfigError(f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}: {have}")
    damage: list[str] = []
    for candidate in [step] if step is not None else reversed(steps):
        try:
            return read(directory / str(candidate)), candidate
        except CheckpointError as error:
            if step is not None:
                raise
            damage.append(str(error))
    raise ConfigError(f"{workdir} has no good checkpoint: {'; '.join(damage)}")


def _params_of(path: Path, target: Tree | None) -> Tree:
    shared = target is not None and _shared(paths.flatten(target))
    leaves = _metadata(path, shared=shared)["leaves"]
    part = "ema/" if any(name.startswith("ema/") for name in leaves) else "params/"
    return _part_of(path, part, target, leaves)


def _part_of(path: Path, part: str, target: Tree | None, leaves: dict[str, Any] | None = None) -> Tree:
    """The leaves of a checkpoint whose names begin with `part`, as a tree or in the layout of `target`."""
    leaves = _metadata(path, shared=False)["leaves"] if leaves is None else leaves
    stored = {name: spec for name, spec in leaves.items() if name.startswith(part)}
    if not stored and target is None:
        return {}
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if target is None:
        shapes = {name: jax.ShapeDtypeStruct(tuple(s), jnp.dtype(d), sharding=here) for name, (s, d) in stored.items()}
    else:
        shapes = {part + name: leaf for name, leaf in paths.flatten(target).items()}
        _same_leaves(path, stored, shapes)
    values = _read(path, shapes, leaves)
    values = {name.removeprefix(part): value for name, value in values.items()}
    return paths.nest(values) if target is None else paths.map_with_name(lambda name, _: values[name], target)


def _metadata(path: Path, *, shared: bool) -> dict[str, Any]:
    """`read_metadata`, which either comes out well on every process of a shared restore or on none."""
    metadata: dict[str, Any] = {}
    failure: Exception | None = None
    try:
        metadata = read_metadata(path)
    except (CheckpointError, ConfigError) as error:
        failure = error
    _raise_everywhere(path, failure, shared=shared)
    return metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """The verified metadata of a checkpoint.

    Raises:
      CheckpointError: it is missing or damaged.  ConfigError: this machine cannot read it.
    """
    try:
        stored = json.loads((path / "metadata" / "metadata").read_text(encoding="utf-8"))
        metadata = stored["metadata"]
        if stored["sha256"] != checksum(metadata):
            raise ValueError("its digest does not match")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if _is_no_damage(error):
            raise ConfigError(f"checkpoint {path} cannot be read here: {one_line(error)}") from error
        raise CheckpointError(f"checkpoint {path} is damaged (metadata: {one_line(error)})") from error
    return metadata


def _read(path: Path, wanted: dict[str, Any], leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves of `wanted` {path: shape with sharding}, verified against the stored digests."""
    values, stored, failure = _read_unverified(path, wanted, len(leaves))
    if failure:
        forget_failed_reads()
    _raise_everywhere(path, failure, shared=_shared(wanted))
    empty = {n: jnp.zeros(x.shape, x.dtype, device=x.sharding) for n, x in wanted.items() if 0 in x.shape}
    values = {name: {**values, **empty}[name] for name in wanted}
    position = {name: i for i, name in enumerate(leaves)}
    got = np.asarray(digests(list(values.values())))
    wrong = [name for name, digest in zip(values, got, strict=True) if digest != stored[position[name]]]
    if wrong:
        names = f"{', '.join(wrong[:3])}, {len(wrong)} in all"
        raise CheckpointError(f"checkpoint {path} is damaged (wrong digest: {names})")
    return values


def _read_unverified(path: Path, wanted: dict[str, Any], leaves: int) -> tuple[dict, Any, Exception | None]:
    """(values, digests, None), or what went wrong, without the frames that hold orbax's pending reads."""
    whole = next(iter(wanted.values())).sharding
    copied = whole if isinstance(whole, jax.sharding.SingleDeviceSharding) else _replicated(whole)
    count = jax.ShapeDtypeStruct((leaves,), jnp.uint32, sharding=copied)
    try:
        values = read_arrays(path / "state", {**with_elements(wanted), "digests": count})
        return values, np.asarray(values.pop("digests")), None
    except Exception as error:
        if _is_no_damage(error):
            return {}, None, ConfigError(f"checkpoint {path} cannot be read here: {one_line(error)}")
        return {}, None, CheckpointError(f"checkpoint {path} is damaged (state: {_unread(error)})")


def _shared(wanted: dict[str, Any]) -> bool:
    """Whether several processes restore together, each its part."""
    return any(not leaf.sharding.is_fully_addressable for leaf in wanted.values())


def _raise_everywhere(path: Path, failure: Exception | None, *, shared: bool) -> None:
    """Raises on every process what went wrong on one: all must take the same checkpoint."""
    if shared:
        from jax.experimental import multihost_utils

        mine = np.asarray([isinstance(failure, CheckpointError), isinstance(failure, ConfigError)])
        damaged, unread = np.any(multihost_utils.process_allgather(mine), axis=0)
        if unread and not isinstance(failure, ConfigError):
            failure = ConfigError(f"checkpoint {path} cannot be read by another process, which says why")
        elif damaged and failure is None:
            failure = CheckpointError(f"checkpoint {path} is damaged (in the part that another process reads)")
    if failure is not None:
        raise failure


def _unread(error: Exception) -> str:
    """Tensorstore says in thousands of characters which array could not be read and why: both in a few."""
    for one in (error, error.__cause__, error.__context__):
        found = re.search(r'Error reading "([^"]+?)(?:/\.zarray|/[\d.]+)?"', str(one))
        if found:
            kind = re.search(r"\b(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|INVALID_ARGUMENT|INTERNAL)\b", str(one))
            return f"{found[1].replace('.', '/')} cannot be read{f', {kind[1]}' if kind else ''}"
    return one_line(error)


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


def storable(tree: Tree) -> dict[str, Any]:
    """{path: leaf} with random keys as their numbers."""

    def numbers(leaf: Any) -> Any:
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=_replicated(leaf.sharding))
        return jax.random.key_data(leaf)

    return {name: numbers(leaf) for name, leaf in paths.flatten(tree).items()}


def unstorable(target: Tree, values: dict[str, Any]) -> Tree:
    def restored(name: str, leaf: Any) -> Any:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(values[name]) if is_key else values[name]

    return paths.map_with_name(restored, target)


def with_elements(flat: dict[str, Any]) -> dict[str, Any]:
    """Orbax refuses arrays without elements; they are made anew."""
    return {name: leaf for name, leaf in flat.items() if 0 not in leaf.shape}


def _replicated(sharding: Any) -> Any:
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())


NO_DAMAGE = (  # signs that the reason lies with the machine: such a checkpoint is not set aside
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "Too many open files",
    "Permission denied",
    "PERMISSION_DENIED",
    "Stale file handle",
    "Transport endpoint is not connected",
)


def _is_no_damage(error: Exception) -> bool:
    return isinstance(error, MemoryError | PermissionError) or any(sign in str(error) for sign in NO_DAMAGE)


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

"""The device mesh, and where every array of the state lives on it.

Axes: "data" copies the parameters, "fsdp" cuts them and gathers them when used, "tensor" cuts the mathematics. Rows of
the batch lie over data x fsdp. Rules (regex on the path, axes of the trailing dimensions) decide, the first that finds
the path: `config.mesh.rules`, then the task's `sharding`; a parameter that no rule finds has its largest dimension cut
over fsdp. A dimension that an axis does not divide is left whole, and the parameter table says so.
"""

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from paperlab.errors import ConfigError
from paperlab.training import paths
from paperlab.training.protocol import Task, option
from paperlab.training.state import TrainState
from paperlab.training.step import row_axes

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
SMALL = 4096  # parameters below this count are not worth a gather

Tree = Any


def make_mesh(sizes: Any, devices: list | None = None) -> Mesh:
    """The mesh of `config.mesh`; data=-1 takes what the other axes leave.

    Raises:
      ConfigError: the sizes do not divide the devices; or, with several processes, do not use them all.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp, tensor = sizes.data, sizes.fsdp, sizes.tensor
    inner = fsdp * tensor
    if data == -1:
        if len(devices) % inner:
            raise ConfigError(
                f"config.mesh: fsdp x tensor = {fsdp} x {tensor} does not divide the {len(devices)} devices"
            )
        data = len(devices) // inner
    wanted = data * inner
    if wanted < 1 or len(devices) % wanted:
        shown = f"data x fsdp x tensor = {data} x {fsdp} x {tensor} = {wanted}"
        raise ConfigError(f"config.mesh: {shown} does not divide the {len(devices)} devices")
    if wanted < len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"config.mesh uses {wanted} of {len(devices)} devices: with several processes use all (data=-1)"
        )
    shape = (data, fsdp, tensor)
    auto = (AxisType.Auto,) * 3
    if wanted == len(devices):
        return jax.make_mesh(shape, AXES, devices=devices, axis_types=auto)
    return Mesh(np.asarray(devices[:wanted]).reshape(shape), AXES, axis_types=auto)


def parse_rules(rules: Any) -> tuple:
    """`config.mesh.rules`, ("regex=axis,axis", ...), as rules; "-" leaves a dimension whole, "data+fsdp" joins axes."""
    parsed = []
    for rule in (rules,) if isinstance(rules, str) else rules:
        regex, _, axes = rule.rpartition("=")
        names = tuple(tuple(a.strip().split("+")) if a.strip() not in ("", "-") else None for a in axes.split(","))
        unknown = {axis for name in names for axis in name or ()} - set(AXES)
        if not regex or unknown:
            raise ConfigError(f"config.mesh.rules: {rule!r} is not of the form 'regex=axis,axis' with axes of {AXES}")
        parsed.append((regex, names))
    return tuple(parsed)


class Placement:
    """Shardings for params and for whatever is shaped like them, and notes on what could not be cut."""

    def __init__(self, mesh: Mesh, task: Task, config_rules: Any, params: Tree):
        self.mesh, self.task = mesh, task
        own = parse_rules(config_rules)
        for regex, _ in own:
            paths.matches(regex, paths.flatten(params), "config.mesh.rules")
        rules = (*own, *option(task, "sharding", ()))
        self.rules = [(paths.compile_rule(regex, "sharding"), axes) for regex, axes in rules]
        self.notes: dict[str, str] = {}
        self._params = {
            name: (leaf.shape, self._of_parameter(name, leaf)) for name, leaf in paths.flatten(params).items()
        }

    def params(self, params: Tree) -> Tree:
        return paths.map_with_name(lambda name, _: self._params[name][1], params)

    def like_params(self, tree: Tree) -> Tree:
        """Optimiser state: a leaf whose path ends in a parameter's, and of its shape, lies where that lies."""
        return paths.map_with_name(self._like, tree)

    def task_state(self, tree: Tree) -> Tree:
        """Leaves with rows like the batch; the others by the rules, else copied."""

        def place(name: str, leaf: Any, axis: int) -> NamedSharding:
            spec: tuple = (*(None,) * axis, ROWS) if axis >= 0 else self._by_rule(name, leaf) or ()
            return NamedSharding(self.mesh, P(*self._divisible(name, leaf, spec)))

        return paths.map_with_name(place, tree, row_axes(self.task, tree))

    def whole(self, state: TrainState) -> TrainState:
        """The sharding of every leaf of a train state."""
        ema = None if state.ema is None else self.params(state.ema)
        return TrainState(
            step=self.replicated,
            data_index=self.replicated,
            params=self.params(state.params),
            state=self.task_state(state.state),
            opt_state=self.like_params(state.opt_state),
            ema=ema,
            guard=jax.tree.map(lambda _: self.replicated, state.guard),
        )

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    @property
    def batch(self) -> NamedSharding:
        return batch_sharding(self.mesh)

    def _like(self, name: str, leaf: Any) -> NamedSharding:
        parts = name.split("/")
        for start in range(len(parts)):
            shape, sharding = self._params.get("/".join(parts[start:]), (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return self.replicated

    def _of_parameter(self, name: str, leaf: Any) -> NamedSharding:
        spec = self._by_rule(name, leaf)
        if spec is None:
            spec = self._largest_over_fsdp(leaf)
        return NamedSharding(self.mesh, P(*self._divisible(name, leaf, spec)))

    def _by_rule(self, name: str, leaf: Any) -> tuple | None:
        axes = next((axes for pattern, axes in self.rules if pattern.search(name)), None)
        if axes is None:
            return None
        axes = tuple(axes)[-leaf.ndim :] if leaf.ndim else ()
        return (*(None,) * (leaf.ndim - len(axes)), *axes)

    def _largest_over_fsdp(self, leaf: Any) -> tuple:
        """Without the leading axis of a stack of matrices, which `lax.scan` takes apart."""
        size = self.mesh.shape["fsdp"]
        first = 1 if leaf.ndim > 2 else 0
        dims = [d for d in range(first, leaf.ndim) if leaf.shape[d] % size == 0]
        if size == 1 or not dims or np.prod(leaf.shape) < SMALL:
            return ()
        largest = max(dims, key=lambda d: leaf.shape[d])
        return (*(None,) * largest, "fsdp")

    def _divisible(self, name: str, leaf: Any, spec: tuple) -> tuple:
        def size_of(axis: Any) -> int:
            names = () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)
            return int(np.prod([self.mesh.shape[n] for n in names], dtype=int))

        kept = tuple(axis if leaf.shape[d] % size_of(axis) == 0 else None for d, axis in enumerate(spec))
        lost = [
            f"{leaf.shape[d]} is not a multiple of {spec[d]}={size_of(spec[d])}"
            for d in range(len(spec))
            if kept[d] != spec[d]
        ]
        if lost:
            self.notes[name] = "; ".join(lost)
        return tuple(None if size_of(axis) == 1 else axis for axis in kept)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data x fsdp."""
    return NamedSharding(mesh, P(ROWS))


def check_batch(rows: int, mesh: Mesh, micro_batches: int) -> None:
    """Raises ConfigError where the rows of a global batch cannot be dealt out evenly."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % micro_batches:
        raise ConfigError(f"config.train.micro_batches={micro_batches} does not divide the {rows} rows of a batch")
    if rows % (shards * micro_batches):
        raise ConfigError(
            f"config.mesh: {rows} rows of a batch over data x fsdp = {shards} devices, {micro_batches} micro-batches, "
            "do not come out even; change config.data.batch_size, config.train.micro_batches or config.mesh.data"
        )


@cache
def process_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count) of this process among the groups of processes that read different rows of a batch.

    Processes that hold the same rows (a tensor axis that spans them) read the same data.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows_of: dict[int, set[int]] = {}
    placed: dict[Any, Any] = dict(batch_sharding(mesh).devices_indices_map((shards,)))
    for device, index in placed.items():
        rows_of.setdefault(device.process_index, set()).add(index[0].start or 0)
    groups = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    if sum(map(len, groups)) != shards or len({len(group) for group in groups}) != 1:
        raise ConfigError(
            "config.mesh: the rows of a batch do not split evenly over the processes; make tensor divide their devices"
        )
    return groups.index(tuple(sorted(rows_of[jax.process_index()]))), len(groups)

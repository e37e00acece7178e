"""How a scan walks over arrays on a TPU: tiles of [rows, channels], groups of 16 rows in them, parts of 8 rows in those.

The grid is (B, blocks of channels, tiles of time). Its last axis is walked in order, in reverse from the last tile to the first.
Tiles may reach over the ends of T and D: groups behind T are left out, rows behind T in the last group are made neutral
(`Plan.masked`), lanes behind D are their own affair.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.compat import pallas_tpu, pl
from kernels_pallas.platforms import YES, Support, no
from kernels_pallas.scan import core
from kernels_pallas.scan.algebra import Algebra, Planes
from kernels_pallas.scan.config import Config

MEMORY = 8 * 2**20  # bytes for the tiles of a program, of which each is there twice
GROUP = 16  # rows read at once: whole registers of bfloat16
ROWS, CHANNELS = 512, 512  # of a tile, at most


class Plan(NamedTuple):
    """One run of a kernel: its algebra, its direction, and the sizes of arrays and tiles."""

    algebra: Algebra
    reverse: bool
    B: int
    T: int
    D: int
    rows: int
    channels: int

    @property
    def tiles(self) -> int:
        """Of time."""
        return pl.cdiv(self.T, self.rows)

    @property
    def ragged(self) -> bool:
        """Whether the last group has rows behind T."""
        return self.T % GROUP != 0

    def order(self, t: Any) -> Any:
        """The tile that the walk meets as its t-th."""
        return self.tiles - 1 - t if self.reverse else t

    def masked(self, part: "Part", x: Planes, neutral: Sequence[Any]) -> Planes:
        """x with `neutral` in the rows behind T."""
        if not self.ragged:
            return x
        there = part.time + core.row_numbers(x[0]) < self.T
        return tuple(jnp.where(there, p, q) for p, q in zip(x, neutral, strict=True))


class Part(NamedTuple):
    """Eight rows: the step of the first one, and where they lie in their group of 16."""

    time: Any
    rows: slice

    def of(self, x: Planes) -> Planes:
        """These rows."""
        return tuple(p[self.rows] for p in x)


def plan_for(algebra: Algebra, shape: Sequence[int], reverse: bool, config: Config, arrays: int) -> Plan:
    """The plan for arrays [B, T, D], of which `arrays` are in tiles at the same time."""
    B, T, D = shape
    channels = config.channels or CHANNELS
    channels = D if channels >= D else channels
    rows = min(config.rows or ROWS, pl.cdiv(T, GROUP) * GROUP)
    lanes = pl.cdiv(channels, 128) * 128
    while rows > GROUP and 2 * arrays * rows * lanes * 4 > MEMORY:
        rows = pl.cdiv(rows // 2, GROUP) * GROUP
    return Plan(algebra, reverse, B, T, D, rows, channels)


def allowed(config: Config) -> Support:
    """Whether these sizes can be those of tiles."""
    for name, size, unit in (("rows", config.rows, GROUP), ("channels", config.channels, 128)):
        if size < 0 or size % unit:
            return no(f"config.{name} = {size} is no multiple of {unit}")
    return YES


def walk(plan: Plan, group: Callable[[Any, list[Part], Any], Any], start: Any) -> Any:
    """Calls group(number, parts, carry) -> carry for the groups of this tile, in the order of the scan."""
    tile = plan.order(pl.program_id(2))
    groups = groups_in(plan, tile)

    def step(i: Any, carry: Any) -> Any:
        number = groups - 1 - i if plan.reverse else i
        time = tile * plan.rows + number * GROUP
        parts = [Part(time + first, slice(first, first + core.ROWS)) for first in range(0, GROUP, core.ROWS)]
        return group(number, parts[::-1] if plan.reverse else parts, carry)

    return lax.fori_loop(0, groups, step, start)


def groups_in(plan: Plan, tile: Any) -> Any:
    """How many groups of a tile hold steps before T."""
    left = plan.T - tile * plan.rows
    return lax.div(jnp.minimum(left, plan.rows) + (GROUP - 1), GROUP)


def read(refs: Sequence[Any], number: Any) -> Planes:
    """A group in float32, [16, D] a plane."""
    rows = pl.ds(pl.multiple_of(number * GROUP, GROUP), GROUP)
    return tuple(ref[rows].astype(jnp.float32) for ref in refs)


def write(refs: Sequence[Any], number: Any, parts: list[Part], values: list[Planes]) -> None:
    """A group from its parts."""
    rows = pl.ds(pl.multiple_of(number * GROUP, GROUP), GROUP)
    pairs = sorted(zip(parts, values, strict=True), key=lambda pair: pair[0].rows.start)
    for ref, *planes in zip(refs, *(value for _, value in pairs), strict=True):
        ref[rows] = jnp.concatenate(planes, axis=0).astype(ref.dtype)


def begin(refs: Sequence[Any], values: Sequence[Any]) -> None:
    """Fills what all tiles share, in the first one."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for ref, value in zip(refs, values, strict=True):
            ref[...] = value


def tile(plan: Plan) -> Any:
    """Tiles of an array [B, T, D]."""
    return pl.BlockSpec((None, plan.rows, plan.channels), lambda i, j, t: (i, plan.order(t), j))


def edge(plan: Plan) -> Any:
    """The 16 rows of an array [B, T, D] that lie before a tile in time (behind it if the walk goes on there)."""
    groups, inside = pl.cdiv(plan.T, GROUP), plan.rows // GROUP

    def index(i: Any, j: Any, t: Any) -> tuple:
        first = plan.order(t) * inside
        return i, jnp.maximum(first - 1, 0) if plan.reverse else jnp.minimum(first + inside, groups - 1), j

    return pl.BlockSpec((None, GROUP, plan.channels), index)


def row(plan: Plan, batch: int) -> Any:
    """The one row of an array [B or 1, 1, D] that all tiles share."""
    return pl.BlockSpec((None, 1, plan.channels), lambda i, j, t: (i if batch > 1 else 0, 0, j))


def call(plan: Plan, body: Any, inputs: Sequence[Any], outputs: Sequence[Any], interpret: Any) -> list[Any]:
    """Runs body(*refs) over the grid. inputs: (array, spec); outputs: (ShapeDtypeStruct, spec)."""
    return pl.pallas_call(
        body,
        grid=(plan.B, pl.cdiv(plan.D, plan.channels), plan.tiles),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        compiler_params=pallas_tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name=f"{plan.algebra.name}{'_reverse' if plan.reverse else ''}",
    )(*[x for x, _ in inputs])


def like(x: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)

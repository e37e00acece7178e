"""How a scan walks over arrays on a Hopper GPU: a block of threads goes along time for one sequence, one tile of channels and one
segment of time, in tiles of rows.

The copy engine brings tiles of every input to shared memory, `stages` of them ahead, and takes tiles of results away; both stop at
the ends of T and D by themselves (what they bring from behind them is zero). States and coefficients that all steps share stay in
registers. The grid runs in no order: nothing goes from one block of threads to another.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.compat import mosaic_gpu, pl
from kernels_pallas.platforms import YES, Support, no
from kernels_pallas.scan.algebra import Algebra
from kernels_pallas.scan.config import Config

THREADS = 128
BOX = 256  # rows or channels that the copy engine brings at once, at most
MOST_SEQUENCES = 65535
MULTIPROCESSORS = 132
ENOUGH = 3  # a block for every third one: cutting time costs up to 5/3 of the bytes (estimated, not measured)
MEMORY = 100 * 1024  # bytes of tiles, so that two blocks of threads fit
LARGEST = 220 * 1024  # bytes of tiles that one block may have
ROWS, FEWEST = 32, 8  # of a tile
STAGES, OUT_STAGES = 3, 2
UNROLLED = 8  # rows whose values are read before the first is worked on; half of them where a row has more than
MOST_UNROLLED = 5 * THREADS  # numbers

Values = tuple[Any, ...]


class Plan(NamedTuple):
    """One run of a kernel: its algebra, its direction, and the sizes of arrays and tiles. span: tiles of a segment."""

    algebra: Algebra
    reverse: bool
    B: int
    T: int
    D: int
    rows: int
    channels: int
    stages: int
    span: int
    unrolled: int

    @property
    def tiles(self) -> int:
        """Of time."""
        return pl.cdiv(self.T, self.rows)

    @property
    def segments(self) -> int:
        """Pieces of time that run at once."""
        return pl.cdiv(self.tiles, self.span)

    @property
    def lanes(self) -> int:
        """Channels of arrays that are read and written without the copy engine: whole tiles."""
        return pl.cdiv(self.D, self.channels) * self.channels


class Plane(NamedTuple):
    """One plane of a reference [B, T, D], or of [B, T, P, D] its `number`-th; `shift` steps later (1), earlier (-1) or as it is."""

    ref: Any
    number: int | None = None
    shift: int = 0

    def part(self, batch: Any, rows: Any, columns: Any) -> Any:
        """A view of a tile."""
        if self.number is None:
            return self.ref.at[batch, rows, columns]
        return self.ref.at[batch, rows, self.number, columns]


class Place(NamedTuple):
    """Where a block of threads works: sequence, segment, columns, and the step at which its tile begins."""

    batch: Any
    segment: Any
    columns: Any


def plan_for(algebra: Algebra, sizes: Sequence[int], reverse: bool, config: Config, widths: Sequence[int]) -> Plan:
    """The plan for arrays [B, T, D]. widths: bytes of a number in every plane that has tiles, negative for results."""
    B, T, D = sizes
    rows = min(config.rows or ROWS, pl.cdiv(T, FEWEST) * FEWEST)
    stages, channels = config.stages or STAGES, config.channels or THREADS
    blocks = B * pl.cdiv(D, channels)
    alone = MULTIPROCESSORS / ENOUGH <= blocks <= MULTIPROCESSORS
    most = LARGEST if config.rows or alone else MEMORY

    def memory() -> int:
        return rows * channels * sum(stages * w if w > 0 else -OUT_STAGES * w for w in widths)

    while rows > FEWEST and memory() > most:
        rows = pl.cdiv(rows // 2, FEWEST) * FEWEST
    while stages > 2 and memory() > LARGEST:
        stages -= 1
    channels = THREADS if memory() > LARGEST else channels
    tiles = pl.cdiv(T, rows)
    segments = config.segments or _segments(blocks, tiles)
    unrolled = UNROLLED if len(widths) * channels <= MOST_UNROLLED else UNROLLED // 2
    return Plan(algebra, reverse, B, T, D, rows, channels, stages, pl.cdiv(tiles, min(segments, tiles)), unrolled)


def allowed(config: Config) -> Support:
    """Whether these sizes can be those of tiles."""
    if config.rows < 0 or config.rows % FEWEST or config.rows > BOX:
        return no(f"config.rows = {config.rows} is no multiple of {FEWEST} up to {BOX}")
    if config.channels not in (0, THREADS, 2 * THREADS):
        return no(f"config.channels = {config.channels} is neither {THREADS} nor {2 * THREADS}")
    if config.stages < 0 or config.segments < 0:
        return no(f"{config} has a negative number")
    return YES


def _segments(blocks: int, tiles: int) -> int:
    """One where B and D give every third multiprocessor a block; else as many as fill them twice, of four tiles at least."""
    if ENOUGH * blocks >= MULTIPROCESSORS:
        return 1
    return max(1, min(2 * MULTIPROCESSORS // blocks, tiles // 4))


def here(plan: Plan) -> Place:
    """The place of this block of threads."""
    columns = pl.ds(lax.axis_index("channels") * plan.channels, plan.channels)
    return Place(lax.axis_index("batch"), lax.axis_index("segment"), columns)


def walk(
    plan: Plan,
    place: Place,
    inputs: Sequence[tuple[Plane, Any]],
    outputs: Sequence[tuple[Plane, Any]],
    ready: Any,
    row: Callable[[Any, Values, Any], tuple[Values, Any]],
    carry: Any,
) -> Any:
    """Runs row(step, values, carry) -> (results, carry) over the steps of this segment, in the order of the scan.

    inputs, outputs: (plane, its tiles in shared memory); ready: barriers, one a stage.
    """
    first = place.segment * plan.span
    count = jnp.minimum(plan.span, plan.tiles - first)

    def begin(k: Any) -> Any:
        return (first + (count - 1 - k if plan.reverse else k)) * plan.rows

    def fetch(k: Any) -> None:
        stage = lax.rem(k, plan.stages)
        for plane, tiles in inputs:
            rows = pl.ds(_first_row(plane, begin(k)), plan.rows)
            source = plane.part(place.batch, rows, place.columns)
            mosaic_gpu.copy_gmem_to_smem(source, tiles.at[stage], ready.at[stage])

    for k in range(min(plan.stages, plan.span)):
        pl.when(k < count)(partial(fetch, jnp.int32(k)))

    def tile(k: Any, carry: Any) -> Any:
        stage, out, start = lax.rem(k, plan.stages), lax.rem(k, OUT_STAGES), begin(k)
        mosaic_gpu.barrier_wait(ready.at[stage])
        if outputs:
            mosaic_gpu.wait_smem_to_gmem(OUT_STAGES - 1, wait_read_only=True)

        def some(rows: Sequence[Any], carry: Any) -> Any:
            values = [tuple(_read(plane, tiles, stage, start, r) for plane, tiles in inputs) for r in rows]
            results = []
            for r, now in zip(rows, values, strict=True):
                found, carry = row(start + r, now, carry)
                results.append(found)
            for r, found in zip(rows, results, strict=True):
                for (_, tiles), x in zip(outputs, found, strict=True):
                    tiles[out, r] = x.astype(tiles.dtype)
            return carry

        carry = _rows(plan, start, some, carry)
        mosaic_gpu.commit_smem()
        for plane, tiles in outputs:
            target = plane.part(place.batch, pl.ds(start, plan.rows), place.columns)
            mosaic_gpu.copy_smem_to_gmem(tiles.at[out], target, commit_group=False)
        if outputs:
            mosaic_gpu.commit_smem_to_gmem_group()
        pl.when(k + plan.stages < count)(partial(fetch, k + plan.stages))
        return carry

    carry = lax.fori_loop(0, count, tile, carry)
    if outputs:
        mosaic_gpu.wait_smem_to_gmem(0)
    return carry


def _rows(plan: Plan, start: Any, some: Callable[[Sequence[Any], Any], Any], carry: Any) -> Any:
    """some(rows, carry) -> carry over the rows of a tile that lie before T, several at a time, the rest one by one."""
    whole = plan.T % plan.rows == 0
    count = plan.rows if whole else jnp.minimum(plan.rows, plan.T - start)

    def at(i: Any) -> Any:
        return count - 1 - i if plan.reverse else i

    bulk = plan.rows // UNROLLED if whole else lax.div(count, UNROLLED)
    carry = lax.fori_loop(0, bulk, lambda q, carry: some([at(q * UNROLLED + u) for u in range(UNROLLED)], carry), carry)
    if whole and plan.rows % UNROLLED == 0:
        return carry
    return lax.fori_loop(bulk * UNROLLED, count, lambda i, carry: some([at(i)], carry), carry)


def _first_row(plane: Plane, start: Any) -> Any:
    """Where the tile of a plane begins: no earlier than at step 0."""
    return jnp.maximum(start + plane.shift, 0) if plane.shift < 0 else start + plane.shift


def _read(plane: Plane, tiles: Any, stage: Any, start: Any, r: Any) -> Any:
    """Row r (shifted), in float32."""
    if plane.shift < 0:
        r = jnp.maximum(r + start + plane.shift - _first_row(plane, start), 0)
    return tiles[stage, r].astype(jnp.float32)


def registers(plan: Plan, ref: Any, *index: Any) -> Any:
    """A row of an array that has whole tiles of channels, in the layout of rows of tiles."""
    layout = mosaic_gpu.Layout.WG_STRIDED((plan.channels,), plan.channels // THREADS)
    return mosaic_gpu.load(ref.at[index], layout=layout)


def constant(plan: Plan, value: float) -> Any:
    """A row of one number."""
    layout = mosaic_gpu.Layout.WG_STRIDED((plan.channels,), plan.channels // THREADS)
    return mosaic_gpu.layout_cast(jnp.full((plan.channels,), value, jnp.float32), layout)


def call(
    plan: Plan,
    body: Callable[..., None],
    arrays: Sequence[Any],
    results: Sequence[jax.ShapeDtypeStruct],
    tiled: Sequence[Any],
    made: Sequence[Any],
    interpret: Any,
) -> list[Any]:
    """Runs body(*arrays, *results, *tiles, barriers). tiled, made: dtypes of the planes that are brought and taken away."""
    shape = (plan.rows, plan.channels)

    def program(*refs: Any) -> None:
        body(*refs)

    program.__name__ = f"{plan.algebra.name}{'_reverse' if plan.reverse else ''}"  # what profilers show
    return mosaic_gpu.kernel(
        program,
        out_type=list(results),
        grid=(pl.cdiv(plan.D, plan.channels), plan.segments, plan.B),
        grid_names=("channels", "segment", "batch"),
        scratch_types=[
            *(mosaic_gpu.SMEM((plan.stages, *shape), dtype) for dtype in tiled),
            *(mosaic_gpu.SMEM((OUT_STAGES, *shape), dtype) for dtype in made),
            mosaic_gpu.Barrier(num_arrivals=len(tiled), num_barriers=plan.stages),
        ],
        # Safe: no tile is both read and written by threads, and what is fetched anew was read before commit_smem.
        compiler_params=mosaic_gpu.CompilerParams(unsafe_no_auto_barriers=True),
        interpret=interpret,
    )(*arrays)

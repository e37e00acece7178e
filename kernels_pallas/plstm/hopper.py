"""The walk over a grid on a Hopper GPU: one block of threads a head, 64 value channels and up to 64 key channels.

Rows of the grid are taken in strips. A strip is walked column by column, each column from top to bottom: the states on the right
edges of its rows wait in shared memory, the state on the edge downwards stays in registers, those below the strip go through the
array of the states that leave at the bottom. A state is [values, keys], as wgmma would lay it out, so that a node's reading is a
sum along rows that never leaves a warp. A column's inputs come by TMA while the column before is walked. The way back
(hopper_backward.py) is the same walk in the other direction.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import mosaic_gpu as mgpu
from kernels_pallas.compat import pl
from kernels_pallas.plstm.core import Gates, Inputs, Results, node
from kernels_pallas.plstm.tiles import side, through

VALUES = 64
KEYS = 64
GATES = 12  # 9, filled up to what TMA can copy
STAGES = 2
SHARED_MEMORY = 232_448


class Padded(NamedTuple):
    """Arguments of a walk, heads of all batch entries in one axis N; Yp is a multiple of `rows`, DVp of 64."""

    q: Array  # [N,X,Yp,DK]
    k: Array
    v: Array  # [N,X,Yp,DVp]
    gates: Array  # [N,X,Yp,12]
    left: Array  # [N,Yp,DVp,DK]
    top: Array  # [N,X,DVp,DK]
    rows: int


class Walk(NamedTuple):
    """Where a block of threads is."""

    head: Any
    across: Any  # its key channels
    down: Any  # its value channels
    X: int
    rows: int
    strips: int

    @property
    def steps(self) -> int:
        """Columns of all strips."""
        return self.X * self.strips

    def place(self, step: Any) -> tuple[Any, Any]:
        """(column, rows) of a step."""
        x, strip = lax.rem(step, jnp.int32(self.X)), lax.div(step, jnp.int32(self.X))
        return x, strip * self.rows


def keys_of(DK: int, most: int = KEYS) -> int:
    """Key channels of a block."""
    return min(DK, most)


def shared_memory(Y: int, DK: int, itemsize: int, most: int) -> int:
    """Bytes of shared memory of a block of threads."""
    rows, keys = side(Y, most), keys_of(DK)
    inputs = rows * ((2 * keys + VALUES) * itemsize + GATES * 4)
    return rows * VALUES * keys * 4 + STAGES * inputs + 1024


def padded(x: Inputs, most: int) -> Padded:
    """Rows filled up to whole strips, of at most `most` rows, and values to whole blocks; states as [DV,DK]."""
    X, Y = x.q.shape[2:4]
    rows = side(Y, most)
    below, beside = (0, -Y % rows), (0, -x.v.shape[-1] % VALUES)
    gates = through(Gates(*(jnp.pad(g, ((0, 0),) * 3 + (below,)) for g in x.gates)), X, Y)
    packed = jnp.stack([*gates, *[jnp.zeros_like(gates.rl)] * (GATES - len(gates))], -1)
    q, k, v = (jnp.pad(a, ((0, 0),) * 3 + (below, pad)) for a, pad in zip(x[:3], ((0, 0), (0, 0), beside), strict=True))
    left, top = (jnp.pad(a, ((0, 0),) * 4 + (beside,)).swapaxes(3, 4) for a in (x.left, x.top))
    left = jnp.pad(left, ((0, 0),) * 2 + (below, (0, 0), (0, 0)))
    q, k, v, packed, left, top = (a.reshape(-1, *a.shape[2:]) for a in (q, k, v, packed, left, top))
    return Padded(q, k, v, packed, left, top, rows)


def states_of(x: Array, B: int, length: int, DV: int) -> Array:
    """[N,length or more,DVp,DK] -> [B,H,length,DK,DV]."""
    return x.reshape(B, -1, *x.shape[1:])[:, :, :length, :DV].swapaxes(3, 4)


def struct(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An output of a kernel."""
    return jax.ShapeDtypeStruct(shape, dtype)


def edges_of(rows: int, keys: int) -> Any:
    """Shared memory for a state on the edge of every row of a strip."""
    tiled: list[Any] = [mgpu.TilingTransform((8, 32)), mgpu.SwizzleTransform(128)]  # type: ignore[abstract]
    return mgpu.SMEM((rows, VALUES, keys), jnp.float32, transforms=tiled)


def forward(given: Inputs, most: int, interpret: Any = None) -> Results:
    """As `reference`, with strips of up to `most` rows."""
    return Results(*walked(given, most, False, interpret)[:3])


def walked(given: Inputs, most: int, save: bool, interpret: Any = None) -> list[Array]:
    """The three results; with `save` also the states on the two edges into every node, [N,X,Yp,2,DVp,DK] in the dtype of q."""
    (B, H, X, Y, DK), dtype = given.q.shape, given.q.dtype
    DV, keys = given.v.shape[-1], keys_of(DK)
    x = padded(given, most)
    N, _, Yp, DVp = x.v.shape
    saved = [struct(N, X, Yp, 2, DVp, DK, dtype=dtype)] * save
    out, right, bottom, *saved = mgpu.kernel(
        partial(_body, X, x.rows, keys),
        out_type=[struct(N, DK // keys, X, Yp, DVp), struct(*x.left.shape), struct(*x.top.shape), *saved],
        scratch_types=[
            edges_of(x.rows, keys),
            *(mgpu.SMEM((STAGES, x.rows, width), dtype) for width in (keys, keys, VALUES)),
            mgpu.SMEM((STAGES, x.rows, GATES), jnp.float32),
            mgpu.Barrier(num_arrivals=4, num_barriers=STAGES),
        ],
        grid=(N, DK // keys, DVp // VALUES),
        grid_names=("head", "key", "value"),
        interpret=interpret,
    )(*x[:6])
    out = out.sum(1).reshape(B, H, X, Yp, DVp)[:, :, :, :Y, :DV]
    return [out, states_of(right, B, Y, DV), states_of(bottom, B, X, DV), *saved]


def _body(X: int, rows: int, keys: int, *refs: Any) -> None:
    *sources, left, top, out, right, bottom = refs[:9]
    *saved, edges, q, k, v, g, loaded = refs[9:]
    walk, key = located(X, rows, keys, left.shape[1] // rows)
    head, across, down = walk[:3]
    fetch = partial(load, walk, sources, (q, k, v, g), (across, across, down, slice(None)), loaded)
    begin(walk, fetch, top, bottom)

    def column(step: Any) -> None:
        slot = lax.rem(step, jnp.int32(STAGES))
        x, first = walk.place(step)

        @pl.when(x == 0)
        def _() -> None:
            loop(rows, lambda y: store(edges.at[y], state(left.at[head, first + y, down, across])))

        mgpu.barrier_wait(loaded.at[slot])

        def one(y: Any, up: Array) -> Array:
            written, queries = (vector(ref.at[slot, y], 0, (VALUES, keys)) for ref in (k, q))
            values = vector(v.at[slot, y], 1, (VALUES, keys))
            beside = state(edges.at[y])
            for ref in saved:
                for number, value in enumerate((beside, up)):
                    ref[head, x, first + y, number, down, across] = value.astype(ref.dtype)
            seen, beside, below = node(scalars(g, slot, y), beside, up, written * values)
            out[head, key, x, first + y, down] = (queries * seen).sum(axis=1)
            edges[y] = beside
            return below

        bottom[head, x, down, across] = lax.fori_loop(
            jnp.int32(0), jnp.int32(rows), one, state(bottom.at[head, x, down, across])
        )

        @pl.when(x == X - 1)
        def _() -> None:
            loop(rows, lambda y: store(right.at[head, first + y, down, across], state(edges.at[y])))

        advance(walk, fetch, step, slot)

    loop(walk.steps, column)


def located(X: int, rows: int, keys: int, strips: int) -> tuple[Walk, Any]:
    """This block's walk, and the number of its key channels' block."""
    head, key, value = (lax.axis_index(name) for name in ("head", "key", "value"))
    return Walk(head, pl.ds(key * keys, keys), pl.ds(value * VALUES, VALUES), X, rows, strips), key


def load(walk: Walk, sources: Any, targets: Any, channels: Any, loaded: Any, step: Any, slot: Any) -> None:
    """Starts to copy the inputs of a column."""
    x, first = walk.place(step)
    for source, target, part in zip(sources, targets, channels, strict=True):
        mgpu.copy_gmem_to_smem(source.at[walk.head, x, pl.ds(first, walk.rows), part], target.at[slot], loaded.at[slot])


def begin(walk: Walk, fetch: Any, entering: Any, border: Any, order: Any = lambda step: step) -> None:
    """Starts the first copies, and fills the array through which states go from strip to strip."""
    for slot in range(min(STAGES, walk.steps)):
        fetch(order(jnp.int32(slot)), slot)
    at = partial(lambda x: (walk.head, x, walk.down, walk.across))
    loop(walk.X, lambda x: store(border.at[at(x)], state(entering.at[at(x)])))


def advance(walk: Walk, fetch: Any, step: Any, slot: Any, order: Any = lambda step: step) -> None:
    """Starts to copy the column after the next, where the present one was."""

    @pl.when(step + STAGES < walk.steps)
    def _() -> None:
        mgpu.commit_smem()
        fetch(order(step + STAGES), slot)


def scalars(g: Any, slot: Any, y: Any) -> Gates:
    """The gates of row y."""
    return Gates(*(g[slot, y, number] for number in range(len(Gates._fields))))


def loop(count: int, body: Any) -> None:
    """A loop that carries nothing."""

    def one(i: Any, _: None) -> None:
        body(i)

    lax.fori_loop(jnp.int32(0), jnp.int32(count), one, None)


def store(ref: Any, value: Array) -> None:
    """Writes a whole reference."""
    ref[...] = value


def state(ref: Any) -> Array:
    """A state in registers."""
    return mgpu.load(ref, layout=mgpu.Layout.WGMMA, optimized=False)


def vector(ref: Any, axis: int, shape: tuple[int, int]) -> Array:
    """A vector of keys (axis 0) or values (axis 1) in registers, repeated along that axis of a state."""
    found = mgpu.load(ref, layout=mgpu.Layout.WGMMA.reduce(axis), optimized=False).astype(jnp.float32)
    return lax.broadcast_in_dim(found, shape, [1 - axis])

"""The way back on a Hopper GPU: the walk of hopper.py from the lower right to the upper left, cotangents of states on its edges.

The states into every node come from a forward walk that saved them: 2 DK DV numbers a node in the dtype of q, which live from one
kernel to the next. A block of threads takes 32 key channels. Sums over channels that other blocks hold, and sums of gates'
cotangents over value channels, are left to XLA.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import mosaic_gpu as mgpu
from kernels_pallas.compat import pl
from kernels_pallas.plstm.core import Gates, Inputs, Results, adjoint, node
from kernels_pallas.plstm.hopper import (
    GATES,
    STAGES,
    VALUES,
    Padded,
    advance,
    begin,
    edges_of,
    keys_of,
    load,
    located,
    loop,
    padded,
    scalars,
    state,
    states_of,
    store,
    struct,
    vector,
    walked,
)

KEYS = 32
NUMBER = len(Gates._fields)


def backward(given: Inputs, cotangents: Results, most: int, interpret: Any = None) -> Inputs:
    """Cotangents of the inputs for those of the results of `forward`."""
    *_, saved = walked(given, most, True, interpret)
    way = given._replace(left=cotangents.right, top=cotangents.bottom)
    x, d_out = padded(way, most), padded(way._replace(v=cotangents.out.astype(given.v.dtype)), most).v
    d_q, d_k, d_v, d_gates, d_left, d_top = _walked_back(x, d_out, saved, interpret)
    (B, H, X, Y, DK), DV = given.q.shape, given.v.shape[-1]

    def nodes(x: Array, D: int) -> Array:
        return x.sum(1).reshape(B, H, X, -1, x.shape[-1])[:, :, :, :Y, :D]

    d_gates = d_gates.sum((1, 2, -1)).reshape(B, H, X, -1, NUMBER)[:, :, :, :Y]
    d_q, d_k, d_v = (nodes(x, D).astype(given.q.dtype) for x, D in ((d_q, DK), (d_k, DK), (d_v, DV)))
    gates = Gates(*jnp.moveaxis(d_gates, -1, 0))
    return Inputs(d_q, d_k, d_v, gates, states_of(d_left, B, Y, DV), states_of(d_top, B, X, DV))


def _walked_back(x: Padded, d_out: Array, saved: Array, interpret: Any) -> tuple[Array, ...]:
    """d_q and d_k [N,value blocks,X,Yp,DK], d_v [N,key blocks,X,Yp,DVp], gates' cotangents [N,key blocks,value blocks,X,Yp,9,64],
    d_left and d_top."""
    (N, X, Yp, DK), DVp = x.q.shape, x.v.shape[-1]
    keys = keys_of(DK, KEYS)
    blocks = DK // keys, DVp // VALUES
    return mgpu.kernel(
        partial(_body, X, x.rows, keys),
        out_type=[
            struct(N, blocks[1], X, Yp, DK),
            struct(N, blocks[1], X, Yp, DK),
            struct(N, blocks[0], X, Yp, DVp),
            struct(N, *blocks, X, Yp, NUMBER, VALUES),
            struct(*x.left.shape),
            struct(*x.top.shape),
        ],
        scratch_types=[
            edges_of(x.rows, keys),
            *(mgpu.SMEM((STAGES, x.rows, width), x.q.dtype) for width in (keys, keys, VALUES, VALUES)),
            mgpu.SMEM((STAGES, x.rows, GATES), jnp.float32),
            mgpu.Barrier(num_arrivals=5, num_barriers=STAGES),
        ],
        grid=(N, *blocks),
        grid_names=("head", "key", "value"),
        interpret=interpret,
    )(x.q, x.k, x.v, d_out, x.gates, saved, x.left, x.top)


def _body(X: int, rows: int, keys: int, *refs: Any) -> None:
    *sources, saved, d_right, d_bottom, d_q, d_k, d_v, d_gates, d_left, d_top = refs[:14]
    edges, q, k, v, o, g, loaded = refs[14:]
    walk, key = located(X, rows, keys, d_right.shape[1] // rows)
    head, across, down = walk[:3]
    value = lax.axis_index("value")
    fetch = partial(load, walk, sources, (q, k, v, o, g), (across, across, down, down, slice(None)), loaded)

    def reverse(step: Any) -> Any:
        return walk.steps - 1 - step

    begin(walk, fetch, d_bottom, d_top, reverse)

    def column(step: Any) -> None:
        slot = lax.rem(step, jnp.int32(STAGES))
        x, first = walk.place(reverse(step))

        @pl.when(x == X - 1)
        def _() -> None:
            loop(rows, lambda y: store(edges.at[y], state(d_right.at[head, first + y, down, across])))

        mgpu.barrier_wait(loaded.at[slot])

        def one(i: Any, d_down: Array) -> Array:
            y = rows - 1 - i
            shape = (VALUES, keys)
            written, queries = (vector(ref.at[slot, y], 0, shape) for ref in (k, q))
            values, outs = (vector(ref.at[slot, y], 1, shape) for ref in (v, o))
            left, up = (
                state(saved.at[head, x, first + y, number, down, across]).astype(jnp.float32) for number in (0, 1)
            )
            own, gates = written * values, scalars(g, slot, y)
            seen, _, _ = node(gates, left, up, own)
            d_q[head, value, x, first + y, across] = (seen * outs).sum(axis=0)
            found, d_beside, d_above, d_own = adjoint(gates, left, up, own, queries * outs, state(edges.at[y]), d_down)
            d_k[head, value, x, first + y, across] = (d_own * values).sum(axis=0)
            d_v[head, key, x, first + y, down] = (d_own * written).sum(axis=1)
            for number, product in enumerate(found):
                d_gates[head, key, value, x, first + y, number, :] = product.sum(axis=1)
            edges[y] = d_beside
            return d_above

        d_top[head, x, down, across] = lax.fori_loop(
            jnp.int32(0), jnp.int32(rows), one, state(d_top.at[head, x, down, across])
        )

        @pl.when(x == 0)
        def _() -> None:
            loop(rows, lambda y: store(d_left.at[head, first + y, down, across], state(edges.at[y])))

        advance(walk, fetch, step, slot, reverse)

    loop(walk.steps, column)

"""Arrays as the TPU kernels read them: time and channels last, so that a block [C,D] of one head is whole tiles of memory.

    D a multiple of 128    [B,T,M,D] -> [B,T,M*D], head m is a block of lanes; nothing moves
    else                   [B,T,M,D] -> [B*M,T,D]
    one number a token     [B,T,M]   -> [B,M,N,1,C], a row a chunk
    states                 [B,H,V,K]: what decays a key channel is a row

T is filled up to N chunks of C tokens with zeros, which leave the state alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from kernels_pallas.compat import pallas_tpu, pl

LANES = 128


class Grid(NamedTuple):
    """Static sizes of a call. Its kernels run over (B, H, J, N): value tiles and heads on their own, chunks in order."""

    B: int
    T: int
    G: int
    R: int
    K: int
    V: int
    C: int
    tile: int
    backward: bool = False  # from the last chunk to the first

    @property
    def H(self) -> int:
        return self.G * self.R

    @property
    def J(self) -> int:
        return self.V // self.tile

    @property
    def N(self) -> int:
        return -(-self.T // self.C)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.B, self.H, self.J, self.N

    def chunk(self, n):
        """The chunk that step n of the last axis works on."""
        return self.N - 1 - n if self.backward else n

    def group(self, h):
        """The group of head h."""
        return lax.div(h, jnp.int32(self.R)) if self.R > 1 else h


Head = Callable[[Grid, Array, Array], tuple[Array, Array | int]]  # (grid, h, j) -> (which of M, which tile of its D)


def own(g: Grid, h, j):
    """A head's q; all of its channels."""
    return h, 0


def own_tile(g: Grid, h, j):
    """A head's tile of values."""
    return h, j


def shared(g: Grid, h, j):
    """The keys or gates of a head's group."""
    return g.group(h), 0


def shared_tile(g: Grid, h, j):
    """A tile of the values of a head's group."""
    return g.group(h), j


def everyone(g: Grid, h, j):
    """What all heads share."""
    return 0, 0


def part(g: Grid, h, j):
    """A gradient that is summed over value tiles afterwards; one of H*J."""
    return h * g.J + j, 0


def tokens(a: Array, width: int, C: int) -> Array:
    """[B,T,M,D] as above, to be read in blocks of `width` of the D channels."""
    B, T, M, D = a.shape
    a = jnp.pad(a, ((0, 0), (0, -T % C), (0, 0), (0, 0)))
    if width % LANES == 0:
        return a.reshape(B, -1, M * D)
    return a.swapaxes(1, 2).reshape(B * M, -1, D)


def from_tokens(a: Array, g: Grid, M: int, D: int, width: int) -> Array:
    """The inverse of `tokens`."""
    a = a.reshape(g.B, -1, M, D) if width % LANES == 0 else a.reshape(g.B, M, -1, D).swapaxes(1, 2)
    return a[:, : g.T]


def tokens_shape(g: Grid, M: int, D: int, width: int) -> tuple[int, int, int]:
    """The shape that `tokens` gives."""
    time = g.N * g.C
    return (g.B, time, M * D) if width % LANES == 0 else (g.B * M, time, D)


def tokens_spec(g: Grid, M: int, D: int, width: int, head: Head) -> pl.BlockSpec:
    """One chunk of one head, [C,width]."""

    def index(b, h, j, n):
        m, tile = head(g, h, j)
        if width % LANES == 0:
            return b, g.chunk(n), m * (D // width) + tile
        return b * M + m, g.chunk(n), 0

    return pl.BlockSpec((None, g.C, width), index)


def rows(a: Array, C: int) -> Array:
    """[B,T,M] -> [B,M,N,1,C]."""
    B, T, M = a.shape
    return jnp.pad(a, ((0, 0), (0, -T % C), (0, 0))).swapaxes(1, 2).reshape(B, M, -1, 1, C)


def from_rows(a: Array, T: int) -> Array:
    """The inverse of `rows`."""
    return a.reshape(*a.shape[:2], -1).swapaxes(1, 2)[:, :T]


def rows_spec(g: Grid, head: Head) -> pl.BlockSpec:
    """One chunk of one head, [1,C]."""
    return pl.BlockSpec((None, None, None, 1, g.C), lambda b, h, j, n: (b, head(g, h, j)[0], g.chunk(n), 0, 0))


def run_rows(run: Array, C: int) -> Array:
    """Resets since the token before the chunk, [B,1,N,1,C] float32, from resets since the start [B,T]."""
    B, T = run.shape
    run = jnp.pad(run, ((0, 0), (0, -T % C)), mode="edge").reshape(B, -1, C)
    before = jnp.pad(run[:, :-1, -1], ((0, 0), (1, 0)))
    return (run - before[:, :, None]).astype(jnp.float32)[:, None, :, None, :]


def state_spec(g: Grid) -> pl.BlockSpec:
    """A tile [tile,K] of a head's state, the same for all chunks."""
    return pl.BlockSpec((None, None, g.tile, g.K), lambda b, h, j, n: (b, h, j, 0))


def states_spec(g: Grid) -> pl.BlockSpec:
    """The same of one chunk's state of [B,H,N,V,K]."""
    return pl.BlockSpec((None, None, None, g.tile, g.K), lambda b, h, j, n: (b, h, g.chunk(n), j, 0))


def parameters() -> pallas_tpu.CompilerParams:
    """Only chunks are in an order."""
    return pallas_tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))

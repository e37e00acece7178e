"""GLA on a TPU: one kernel over all chunks of a head, its state kept in VMEM, and one for all gradients.

Nothing but the inputs and the last state is kept for the backward pass, which computes the chunks' states again. Query heads of one
group are computed one by one, and the gradients of what they share are summed afterwards.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.gated_linear_attention.inputs import Inputs
from kernels_pallas.gated_linear_attention.tpu_backward import backward
from kernels_pallas.gated_linear_attention.tpu_forward import forward
from kernels_pallas.gated_linear_attention.tpu_layout import LANES, Grid
from kernels_pallas.platforms import YES, Support, no

LARGEST_K = 512
LARGEST_STATE = 2**17  # entries of a head's state tile [tile,K]; in the backward pass VMEM holds about ten of them
LARGEST_GATES = 2**16  # entries of a chunk's gates [chunk,K]; it holds two a level of their decays
CHUNKS = (8, 16, 32, 64, 128, 256)
SMALLEST_CHUNK = 16  # that is taken for short sequences: rows of one tile of memory of bfloat16


class TpuConfig(NamedTuple):
    """Block sizes of the TPU kernels; less is taken where less is there, or fits.

    chunk: tokens a step, one of CHUNKS. tile: value channels a program; 0: as many as fit.
    """

    chunk: int = 128
    tile: int = 0


def supports_tpu(x: Inputs) -> Support:
    """Whether the kernel takes `x`; looks at shapes and dtypes alone."""
    K, V = x.q.shape[-1], x.v.shape[-1]
    if x.q.dtype not in (jnp.float32, jnp.bfloat16):
        return no(f"the dtype of q, k and v is {x.q.dtype}, the TPU kernel takes float32 and bfloat16")
    if x.log_beta is not None:
        return no("log_beta has a value a channel, the TPU kernel has no gate on value channels")
    if K > LARGEST_K:
        return no(f"K = {K} is more than the {LARGEST_K} key channels that the TPU kernel holds at once")
    if not _tile(K, V):
        return no(f"V = {V} is no multiple of {LANES}, and a state of K = {K} times V does not fit the TPU kernel")
    return YES


def tpu(x: Inputs, config: TpuConfig = TpuConfig(), interpret: Any = False) -> tuple[Array, Array]:
    """As `chunked.chunked`, by the kernel: o [B,T,G,R,V] in the dtype of v, the last state [B,G,R,K,V] in float32.

    Args:
      x: canonical inputs that `supports_tpu` takes.
      config: block sizes.
      interpret: of `pallas_call`: True, or `compat.tpu_simulation()`, runs it on any device.

    Raises:
      ValueError: `config` holds what is no block size.
    """
    return _gla(x, grid_of(x, config), interpret)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gla(x: Inputs, g: Grid, interpret: Any) -> tuple[Array, Array]:
    return _saved(x, g, interpret)[0]


def _saved(x: Inputs, g: Grid, interpret: Any):
    o, last = forward(x, g, interpret)
    result = o.reshape(g.B, g.T, g.G, g.R, g.V), last.swapaxes(2, 3).reshape(g.B, g.G, g.R, g.K, g.V)
    return result, (x, last)


def _gradients(g: Grid, interpret: Any, saved: tuple[Inputs, Array], cotangents: tuple[Array, Array]):
    (x, last), (do, dlast) = saved, cotangents
    dlast = dlast.reshape(g.B, g.H, g.K, g.V).swapaxes(2, 3)
    return (backward(x, last, do.reshape(g.B, g.T, g.H, g.V), dlast, g, interpret),)


_gla.defvjp(_saved, _gradients)


def grid_of(x: Inputs, config: TpuConfig) -> Grid:
    """The sizes of a call."""
    B, T, G, R, K = x.q.shape
    V = x.v.shape[-1]
    if config.chunk not in CHUNKS or config.tile < 0:
        raise ValueError(f"{config}: chunk must be one of {CHUNKS}, and tile not negative")
    needed = max(SMALLEST_CHUNK, 1 << (T - 1).bit_length())
    chunk = min(config.chunk, needed, LARGEST_GATES >> (K - 1).bit_length())
    return Grid(B, T, G, R, K, V, chunk, _tile(K, V, config.tile or V))


def _tile(K: int, V: int, most: int = 0) -> int:
    """Value channels of a program, at most `most` where V splits into that few; 0 where a state is too large."""
    tiles = [V] if V % LANES else [tile for tile in range(V, 0, -LANES) if V % tile == 0 and tile * K <= LARGEST_STATE]
    wanted = [tile for tile in tiles if not most or tile <= most]
    tile = (wanted or tiles[-1:] or [0])[0]
    return tile if tile * K <= LARGEST_STATE else 0

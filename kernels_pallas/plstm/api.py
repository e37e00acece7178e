"""The two-dimensional linear recurrence of pLSTM as a function on arrays (arXiv 2506.11997, section 4.3 and appendix A.4).

Node (x, y) has an edge to the right, to (x + 1, y), and one down, to (x, y + 1), each with a state of DK x DV. With cl and cu
the states on the edges that come in from the left and from above,

    right = rl cl + ru cu + source_r k v^T           out = scale q^T (mark_l cl + mark_u cu + direct k v^T)
    down  = dl cl + du cu + source_d k v^T

rl, ru, dl, du: left to right, up to right, left to down, up to down. D-mode has no dl (chirality L) or no ru (chirality R).

    impl        dependent steps    what it is
    reference   X Y                node after node, the definition
    chunked     X/c + Y/c - 1      plain JAX: tiles of c x c nodes, one anti-diagonal of tiles after another
    pallas      X Y / c^2 tiles    TPU: one tile after another, a tile being matmuls with its gating matrix
                X Y                Hopper GPU: node after node, a head and 64 x 64 of its state a block of threads
    interpret                      the TPU kernel run by Pallas's interpreter
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas import platforms
from kernels_pallas.configs import tuned
from kernels_pallas.plstm import hopper, hopper_backward, tpu, tpu_backward
from kernels_pallas.plstm.chunked import chunked
from kernels_pallas.plstm.core import Gates, Inputs, Results
from kernels_pallas.plstm.reference import reference
from kernels_pallas.plstm.tiles import cut, uncut


class Config(NamedTuple):
    """tile: the longest side of a tile of nodes; on a Hopper GPU the most rows of a strip, whose states share 227 KiB of memory."""

    tile: int = 8


def plstm_grid(
    q: Array,
    k: Array,
    v: Array,
    source_r: Array,
    source_d: Array | None,
    rl: Array,
    ru: Array | None,
    dl: Array | None,
    du: Array | None,
    mark_l: Array,
    mark_u: Array | None,
    direct: Array | None = None,
    left: Array | None = None,
    top: Array | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
    config: Config | None = None,
) -> tuple[Array, Array, Array]:
    """What every node reads from the memory of all nodes to its upper left, and the states that leave the grid.

    Args:
      q, k: [B,H,X,Y,DK];  v: [B,H,X,Y,DV], floating point; the three are brought to one dtype.
      source_r, source_d, rl, ru, dl, du, mark_l, mark_u, direct: gates [B,H,X,Y]; None is zero.
      left, top: states that enter at x = 0 [B,H,Y,DK,DV] and at y = 0 [B,H,X,DK,DV]; zeros if omitted.
      scale: of the output; DK^-0.5 if omitted, as in pLSTM's grid layers. The states carry no scale.
      impl: "auto" (the kernel of this device, else "chunked"), "reference", "chunked", "pallas" or "interpret".
      config: sides of tiles; by default what was measured for this device (tuned.json), else tiles of 8 x 8.

    Returns:
      out [B,H,X,Y,DV] in the dtype of v, and the states that leave to the right [B,H,Y,DK,DV] and at the bottom [B,H,X,DK,DV].
      Gates and states are float32 (float64 for float64 inputs), also where q, k, v are bfloat16.

      Differentiable in every array. The gradient keeps the inputs alone and goes through the grid forward once more, then back;
      behind a kernel both are kernels. Between the two live the states that enter every tile, in float32 (TPU, `chunked`), or
      those that enter every node, in the dtype of q (Hopper).

    Raises:
      ValueError: shapes that do not fit, an empty array, or an `impl` that is unknown or cannot take these arguments.
    """
    gates = _gates(q, source_r, source_d, rl, ru, dl, du, mark_l, mark_u, direct)
    _check(q, k, v, gates, left, top)
    x = _inputs(q, k, v, gates, left, top, q.shape[-1] ** -0.5 if scale is None else scale)
    config = config or tuned("plstm_grid", case_of(q, v), Config())
    chosen = platforms.choose("plstm_grid", impl, partial(_supports, list(x[:3]), config))
    if chosen == "reference":
        found = reference(x)
    elif chosen == "chunked":
        found = chunked(x, config.tile)
    else:
        found = _kernel(chosen, config, x)
    return found.out.astype(v.dtype), found.right, found.bottom


def supports(platform: str, q: Any, k: Any, v: Any, *others: Any, config: Config | None = None) -> platforms.Support:
    """Whether the kernel of "tpu" or "hopper" takes these arguments of `plstm_grid` (arrays or their shapes)."""
    return _supports([q, k, v], config or tuned("plstm_grid", case_of(q, v), Config()), platform)


def case_of(q: Any, v: Any) -> dict[str, Any]:
    """Sizes by name."""
    B, H, X, Y, DK = q.shape
    return {
        "B": B,
        "H": H,
        "X": X,
        "Y": Y,
        "DK": DK,
        "DV": v.shape[-1],
        "dtype": str(jnp.result_type(q.dtype, v.dtype)),
    }


def _supports(arrays: list[Any], config: Config, platform: str) -> platforms.Support:
    dtype = jnp.result_type(*(x.dtype for x in arrays))
    if dtype not in (jnp.float32, jnp.bfloat16):
        return platforms.no(f"{dtype} inputs: the kernels take float32 and bfloat16")
    (Y, DK), DV = arrays[0].shape[3:], arrays[2].shape[-1]
    if platform == "hopper":
        if DK % hopper.keys_of(DK) or DK % 32:
            return platforms.no(f"DK = {DK} is neither 32 nor a multiple of 64")
        used = hopper.shared_memory(Y, DK, dtype.itemsize, config.tile)
        if used > hopper.SHARED_MEMORY:
            return platforms.no(f"strips of {config.tile} rows take {used} bytes of shared memory")
        return platforms.YES
    used = tpu.states_memory(Y, DK, DV, config.tile)
    if used > tpu.VMEM * 3 // 4:
        return platforms.no(f"the states of a column of Y = {Y} nodes take {used} of {tpu.VMEM} bytes of VMEM")
    return platforms.YES


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel(platform: str, config: Config, x: Inputs) -> Results:
    if platform == "hopper":
        return hopper.forward(x, config.tile)
    tiles = cut(x, config.tile)
    out, right, bottom = tpu.forward(tiles, interpret=platform == "interpret")[:3]
    return uncut(out, right, bottom, x.q.shape[2:4], tiles.gates.rl.shape[-2])


def _keep(platform: str, config: Config, x: Inputs) -> tuple[Results, Inputs]:
    return _kernel(platform, config, x), x


def _gradient(platform: str, config: Config, x: Inputs, cotangents: Results) -> tuple[Inputs]:
    if platform == "hopper":
        return (hopper_backward.backward(x, cotangents, config.tile),)
    tiles, to_inputs = jax.vjp(partial(cut, most=config.tile), x)
    shapes = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (tiles.v, tiles.left, tiles.top)]
    joined = partial(uncut, size=x.q.shape[2:4], px=tiles.gates.rl.shape[-2])
    in_tiles = jax.linear_transpose(joined, *shapes)(cotangents)
    return to_inputs(tpu_backward.backward(tiles, Results(*in_tiles), interpret=platform == "interpret"))


_kernel.defvjp(_keep, _gradient)


def _gates(like: Array, *gates: Array | None) -> Gates:
    return Gates(*(jnp.zeros(like.shape[:4], jnp.float32) if g is None else g for g in gates))


def _inputs(q: Array, k: Array, v: Array, gates: Gates, left: Array | None, top: Array | None, scale: float) -> Inputs:
    dtype = jnp.result_type(q, k, v)
    wide = jnp.promote_types(dtype, jnp.float32)
    gates = Gates(*(g.astype(wide) for g in gates))
    gates = gates._replace(mark_l=gates.mark_l * scale, mark_u=gates.mark_u * scale, direct=gates.direct * scale)
    (B, H, X, Y, DK), DV = q.shape, v.shape[-1]
    left = jnp.zeros((B, H, Y, DK, DV), wide) if left is None else left.astype(wide)
    top = jnp.zeros((B, H, X, DK, DV), wide) if top is None else top.astype(wide)
    return Inputs(q.astype(dtype), k.astype(dtype), v.astype(dtype), gates, left, top)


def _check(q: Array, k: Array, v: Array, gates: Gates, left: Array | None, top: Array | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 5 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point [B,H,X,Y,D], got {x.dtype}{list(x.shape)}")
        if 0 in x.shape:
            raise ValueError(f"{name} must not be empty, got {x.shape}")
    B, H, X, Y, DK = q.shape
    DV = v.shape[-1]
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {"k": (k, q.shape), "v": (v, (B, H, X, Y, DV))}
    wanted |= {name: (g, (B, H, X, Y)) for name, g in zip(Gates._fields, gates, strict=True)}
    wanted |= {"left": (left, (B, H, Y, DK, DV)), "top": (top, (B, H, X, DK, DV))}
    for name, (x, shape) in wanted.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} must be {list(shape)} to fit q {list(q.shape)} and v, got {list(x.shape)}")

"""Linear recurrences over time, channel by channel, as functions on arrays.

    h_t = a_t h_{t-1} + b_t,    h_{-1} = h0

    linear_scan    a, h numbers                 gated averages, diagonal state spaces
    complex_scan   complex, as two real planes  S4D, S5, LRU
    block2_scan    a 2 x 2, h of two            cells of two coupled variables, e.g. the Newton steps of an LSTM

Each is `impl` "reference" (T steps), "chunked" (plain JAX, 3 sqrt(T) steps), "pallas" (a kernel of a TPU or a Hopper GPU: every
byte moved once, the state in float32), "interpret" (the TPU kernel on any device, for tests) or "auto". Gradients cost one more run
of the same kernel the other way.

Source: Martin and Cundy 2018 (arXiv 1709.04057), section 2; Smith et al. 2023 (arXiv 2208.04933), appendix H; ParaRNN (arXiv
2510.21450), appendix D.2.
"""

import jax.numpy as jnp
from jax import Array

from kernels_pallas.configs import tuned
from kernels_pallas.platforms import YES, Support, choose, no
from kernels_pallas.scan import hopper_tiles, tpu_tiles
from kernels_pallas.scan.algebra import BLOCK2, COMPLEX, REAL, Algebra, Planes
from kernels_pallas.scan.config import Config
from kernels_pallas.scan.groups import Group, invariant, sizes
from kernels_pallas.scan.solve import solve


def linear_scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    impl: str = "auto",
    config: Config | None = None,
) -> tuple[Array, Array]:
    """Runs h_t = a_t h_{t-1} + b_t.

    Args:
      a: decay [B, T, D]; the same at every step as [D], or as [B, D] a sequence.
      b: input [B, T, D], floating point.
      h0: the state before the first step [B, D]; zeros if omitted.
      reverse: h_t = a_t h_{t+1} + b_t from the last step to the first; h0 is then the state after the last one.
      impl: "auto", "reference", "chunked", "pallas" or "interpret".
      config: tile sizes of the kernel; measured ones if omitted.

    Returns:
      h [B, T, D] in the dtype of b, and the last state [B, D] in float32 (float64 for a float64 b).

    Raises:
      ValueError: shapes that do not fit, an empty b, a dtype that is not real, an unknown `impl`, or a kernel that is asked for
        and does not take these arguments.
    """
    _check("linear_scan", b, 3, {"b": (b,), "a": (a,), "h0": (h0,)})
    h, last = _run(REAL, _varying_or_rows((a,)), (b,), None if h0 is None else (h0,), reverse, impl, config)
    return h[0], last[0]


def complex_scan(
    a_re: Array,
    a_im: Array,
    b_re: Array,
    b_im: Array,
    h0_re: Array | None = None,
    h0_im: Array | None = None,
    *,
    reverse: bool = False,
    impl: str = "auto",
    config: Config | None = None,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """`linear_scan` on complex numbers, every one as two real planes: returns ((h_re, h_im), (last_re, last_im)).

    Gradients are those of the planes: for a real loss L, dL/d re and dL/d im.

    Raises:
      ValueError: as `linear_scan`; or the two planes of a number differ in shape or dtype.
    """
    b = (b_re, b_im)
    named: dict[str, tuple[Array | None, ...]] = {"b": b, "a": (a_re, a_im), "h0": (h0_re, h0_im)}
    for name, (re, im) in named.items():
        described = [None if x is None else (x.shape, x.dtype) for x in (re, im)]
        if described[0] != described[1]:
            raise ValueError(f"complex_scan: {name}_re and {name}_im must have one shape and one dtype")
    _check("complex_scan", b_re, 3, named)
    state = None if h0_re is None or h0_im is None else (h0_re, h0_im)
    h, last = _run(COMPLEX, _varying_or_rows((a_re, a_im)), b, state, reverse, impl, config)
    return (h[0], h[1]), (last[0], last[1])


def block2_scan(
    a: Array,
    b: Array,
    h0: Array | None = None,
    *,
    reverse: bool = False,
    impl: str = "auto",
    config: Config | None = None,
) -> tuple[Array, Array]:
    """`linear_scan` on pairs: every channel has a state of two and a coefficient of 2 x 2.

    Args:
      a: [B, T, 2, 2, D], row before column; the same at every step as [2, 2, D], or as [B, 2, 2, D] a sequence.
      b: [B, T, 2, D].
      h0: [B, 2, D]; zeros if omitted.
      reverse, impl, config: as in `linear_scan`.

    Returns:
      h [B, T, 2, D] in the dtype of b, and the last state [B, 2, D] in float32 (float64 for a float64 b).

    Raises:
      ValueError: as `linear_scan`.
    """
    _check("block2_scan", b, 4, {"b": (b,), "a": (a,), "h0": (h0,)})
    state = None if h0 is None else (h0[:, 0], h0[:, 1])
    h, last = _run(BLOCK2, _blocks(a), (b,), state, reverse, impl, config)
    return h[0], jnp.stack(last, axis=1)


def supports(platform: str, algebra: Algebra, a: Group, b: Group, config: Config | None) -> Support:
    """Whether the kernel of a platform takes these groups with these sizes of tiles."""
    for name, group in (("a", a), ("b", b)):
        if group[0].dtype not in (jnp.float32, jnp.bfloat16):
            return no(f"{name} is {group[0].dtype}, the kernels take float32 and bfloat16")
    if platform == "hopper" and b[0].shape[0] > hopper_tiles.MOST_SEQUENCES:
        return no(f"B = {b[0].shape[0]} is more than the {hopper_tiles.MOST_SEQUENCES} sequences of a grid")
    if config is None:
        return YES
    return tpu_tiles.allowed(config) if platform == "tpu" else hopper_tiles.allowed(config)


def _run(
    algebra: Algebra, a: Group, b: Group, h0: Planes | None, reverse: bool, impl: str, config: Config | None
) -> tuple[Group, Planes]:
    how = choose(algebra.name, impl, lambda platform: supports(platform, algebra, a, b, config))
    B, T, D = sizes(b)
    wide = jnp.promote_types(b[0].dtype, jnp.float32)
    if config is None:
        config = tuned(algebra.name, {"B": B, "T": T, "D": D, "dtype": str(b[0].dtype)}, Config())
    if h0 is None:
        h0 = (jnp.zeros((B, D), wide),) * algebra.states
    else:
        h0 = tuple(x.astype(wide) for x in h0)
    if invariant(a):
        a = tuple(x.astype(wide) for x in a)
    return solve(algebra, how, a, b, h0, reverse=reverse, config=config)


def _varying_or_rows(a: Group) -> Group:
    """[B, T, D] and [B, D] as they are, [D] as [1, D]."""
    return tuple(x[None] if x.ndim == 1 else x for x in a)


def _blocks(a: Array) -> Group:
    if a.ndim == 5:
        return (a.reshape(*a.shape[:2], 4, a.shape[-1]),)
    rows = a if a.ndim == 4 else a[None]
    return tuple(rows[:, i, j] for i in range(2) for j in range(2))


def _check(name: str, b: Array, ndim: int, arrays: dict[str, tuple[Array | None, ...]]) -> None:
    """Raises ValueError where an array does not fit to b."""
    pair = (2,) if ndim == 4 else ()
    if b.ndim != ndim or b.shape[2:-1] != pair:
        raise ValueError(f"{name}: b must be [B, T, {'2, ' if pair else ''}D], got {b.shape}")
    if 0 in b.shape:
        raise ValueError(f"{name}: b must not be empty, got {b.shape}")
    B, T, D = b.shape[0], b.shape[1], b.shape[-1]
    square = (*pair, *pair)
    wanted = {
        "a": ((B, T, *square, D), (*square, D), (B, *square, D)),
        "b": (b.shape,),
        "h0": ((B, *pair, D),),
    }
    for kind, group in arrays.items():
        for x in group:
            if x is not None and x.shape not in wanted[kind]:
                shapes = " or ".join(map(str, wanted[kind]))
                raise ValueError(f"{name}: {kind} must be {shapes} to fit b {b.shape}, got {x.shape}")
            if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(f"{name}: {kind} must be real floating point, got {x.dtype}")

"""A small operation that is not in the registry, for tests of what measures and tunes: h_t = a_t h_{t-1} + b_t."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import platforms
from kernels_pallas.op import Floor, Op


class Config(NamedTuple):
    block: int = 8


def run(a, b, h0=None, *, impl="auto", config=None):
    """`block` 13 gives wrong numbers, 14 is refused."""
    how = platforms.choose("linear_scan", impl, lambda platform: platforms.YES)
    block = (config or Config()).block
    if block == 14:
        raise ValueError("block = 14 does not divide anything")
    wide = jnp.promote_types(b.dtype, jnp.float32)
    a, x = (jnp.moveaxis(jnp.broadcast_to(z.astype(wide), b.shape), 1, 0) for z in (a, b))
    start = jnp.zeros(b.shape[::2], wide) if h0 is None else h0.astype(wide)

    def step(h, ax):
        h = ax[0] * h + ax[1]
        return h, h

    last, h = jax.lax.scan(step, start, (a, x), unroll=1 if how == "reference" else 2)
    h = jnp.moveaxis(h, 0, 1).astype(b.dtype)
    return (h + 0.5, last) if block == 13 else (h, last)


def example(case, key):
    keys = jax.random.split(key, 3)
    shape = case["B"], case["T"], case["D"]
    a = jax.random.uniform(keys[0], shape, minval=0.5, maxval=0.99).astype(case["dtype"])
    b = jax.random.normal(keys[1], shape).astype(case["dtype"])
    return a, b, jax.random.normal(keys[2], shape[::2]) if case["T"] % 2 else None


def floor(case, which):
    numbers = case["B"] * case["T"] * case["D"] * jnp.dtype(case["dtype"]).itemsize
    times = 3 if which == "forward" else 8
    return Floor(times * numbers, times * numbers, case["T"])


SMALL = (
    {"B": 2, "T": 13, "D": 8, "dtype": "float32"},
    {"B": 2, "T": 16, "D": 8, "dtype": "bfloat16"},
)
OP = Op(
    name="linear_scan",
    run=run,
    example=example,
    cases=({"B": 4, "T": 600, "D": 16, "dtype": "float32"},),
    small=SMALL,
    supports=lambda platform, *arrays: platforms.YES,
    configs=lambda case, platform: (Config(), Config(4), Config(13), Config(14)),
    floor=floor,
)

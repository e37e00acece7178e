"""The three scans as operations: examples, benchmark cases, floors."""

from functools import partial
from itertools import product
from math import ceil, log2
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.op import Case, Floor, Op
from kernels_pallas.platforms import Support
from kernels_pallas.scan import api
from kernels_pallas.scan.algebra import BLOCK2, COMPLEX, REAL, Algebra
from kernels_pallas.scan.config import Config

# "invariant": the coefficient is the same at every step; "start": with a first state.
LINEAR = (
    {"B": 8, "T": 4096, "D": 2048, "dtype": "float32"},
    {"B": 8, "T": 4096, "D": 2048, "dtype": "bfloat16"},
    {"B": 32, "T": 1024, "D": 2048, "dtype": "float32"},
    {"B": 1, "T": 32768, "D": 256, "dtype": "float32"},
)
COMPLEXES = (
    {"B": 8, "T": 4096, "D": 1024, "dtype": "float32", "invariant": 1},
    {"B": 8, "T": 4096, "D": 1024, "dtype": "float32"},
    {"B": 1, "T": 32768, "D": 256, "dtype": "float32", "invariant": 1},
)
BLOCKS = (
    {"B": 8, "T": 4096, "D": 1024, "dtype": "float32"},
    {"B": 1, "T": 32768, "D": 256, "dtype": "float32"},
)
SMALL = (
    {"B": 2, "T": 1, "D": 5, "dtype": "float32"},
    {"B": 2, "T": 37, "D": 130, "dtype": "float32", "start": 1},
    {"B": 1, "T": 21, "D": 6, "dtype": "bfloat16", "start": 1, "invariant": 1},
)


def _linear(case: Case, key: Any) -> tuple[Array | None, ...]:
    """(a, b, h0); decays between 0.6 and 1, inputs that keep h of size 1."""
    b, shape, state, keys = _drawn(case, key, ())
    a = jax.random.uniform(keys[0], shape, minval=0.6, maxval=0.999)
    return a.astype(b.dtype), (b * jnp.sqrt(1 - a * a)).astype(b.dtype), state


def _complex(case: Case, key: Any) -> tuple[Array | None, ...]:
    """(a_re, a_im, b_re, b_im, h0_re, h0_im); the same decays, any phase."""
    b, shape, state, keys = _drawn(case, key, (2,))
    size = jax.random.uniform(keys[0], shape, minval=0.6, maxval=0.999)
    phase = jax.random.uniform(keys[1], shape, maxval=6.28)
    a = (size * jnp.cos(phase)).astype(b.dtype), (size * jnp.sin(phase)).astype(b.dtype)
    inputs = ((b[:, :, p] * jnp.sqrt(1 - size * size)).astype(b.dtype) for p in range(2))
    return *a, *inputs, *((None, None) if state is None else (state[:, 0], state[:, 1]))


def _blocks(case: Case, key: Any) -> tuple[Array | None, ...]:
    """(a, b, h0); a is a turn after a reflection or a shrinking of the second variable, times a decay."""
    b, shape, state, keys = _drawn(case, key, (2,))
    size = jax.random.uniform(keys[0], shape, minval=0.6, maxval=0.999)
    phase, second = (jax.random.uniform(k, shape, minval=-1, maxval=1) for k in keys[1:])
    cos, sin = size * jnp.cos(3.14 * phase), size * jnp.sin(3.14 * phase)
    a = jnp.stack([jnp.stack([cos, -sin * second], -2), jnp.stack([sin, cos * second], -2)], -3)
    return a.astype(b.dtype), (b * 0.5).astype(b.dtype), state


def _drawn(case: Case, key: Any, pair: tuple[int, ...]) -> tuple[Array, tuple[int, ...], Array | None, Array]:
    """Inputs [B, T, *pair, D], the shape of a coefficient of one plane, the first state if there is one, more keys."""
    B, T, D, dtype = (case[name] for name in ("B", "T", "D", "dtype"))
    keys = jax.random.split(key, 5)
    b = jax.random.normal(keys[0], (B, T, *pair, D), dtype)
    state = jax.random.normal(keys[1], (B, *pair, D)) if case.get("start") else None
    return b, (D,) if case.get("invariant") else (B, T, D), state, keys[2:]


def _configs(case: Case, platform: str) -> tuple[Config, ...]:
    if platform == "tpu":
        others = [Config(rows, channels) for rows, channels in product((128, 256, 512), (256, 512, 1024))]
    else:
        others = [Config(*sizes) for sizes in product((16, 32, 64), (128, 256), (2, 3, 4), (0,))]
        others += [Config(segments=segments) for segments in (1, 4, 16, 64)]
    return Config(), *others


def _floor(algebra: Algebra, case: Case, which: str) -> Floor:
    """Forward: a and b read, h written. Backward: a, h and the cotangent of h read, those of a and b written."""
    elements = case["B"] * case["T"] * case["D"]
    size = jnp.dtype(case["dtype"]).itemsize * elements
    m, n = 0 if case.get("invariant") else algebra.coefficients, algebra.states
    flops = {1: 2, 2: 8}[n] * elements
    steps = ceil(log2(case["T"])) + 1
    if which == "forward":
        return Floor((m + 2 * n) * size, flops, steps)
    return Floor((3 * m + 5 * n) * size, 3 * flops, 2 * steps)


def _supports(algebra: Algebra, platform: str, *arrays: Array) -> Support:
    n = algebra.states if algebra is COMPLEX else 1
    return api.supports(platform, algebra, arrays[:n], arrays[n : 2 * n], None)


def _op(algebra: Algebra, run: Any, example: Any, cases: tuple[Case, ...]) -> Op:
    return Op(
        name=algebra.name,
        run=run,
        example=example,
        cases=cases,
        small=SMALL,
        supports=partial(_supports, algebra),
        configs=_configs,
        floor=partial(_floor, algebra),
    )


OPS = {
    op.name: op
    for op in (
        _op(REAL, api.linear_scan, _linear, LINEAR),
        _op(COMPLEX, api.complex_scan, _complex, COMPLEXES),
        _op(BLOCK2, api.block2_scan, _blocks, BLOCKS),
    )
}

"""What gated linear attention tells the tests, the benchmark and the tuning.

Sizes of a case: B, T, H heads of q, G of k and v (H if left out), K, V; gate: "channel", "scalar" or "none"; dtype of q, k, v; in
`small` ones also state: there is an initial one; segments: several are packed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas.gated_linear_attention import shells
from kernels_pallas.gated_linear_attention.api import gla
from kernels_pallas.gated_linear_attention.inputs import Inputs, canonical
from kernels_pallas.gated_linear_attention.tpu import TpuConfig
from kernels_pallas.op import Case, Floor, Op
from kernels_pallas.platforms import Support


def case(B: int, T: int, H: int, K: int, V: int, dtype: str = "bfloat16", gate: str = "channel", **more: Any) -> Case:
    """A case as described above."""
    return {"B": B, "T": T, "H": H, "K": K, "V": V, "gate": gate, "dtype": dtype, **more}


CASES = (
    case(8, 4096, 16, 128, 128),
    case(8, 4096, 4, 256, 512),  # a layer of the paper's 1.3B model
    case(8, 4096, 32, 64, 64),
    case(8, 4096, 32, 128, 128, gate="scalar"),  # RetNet in FLA's README
    case(2, 16384, 4, 64, 64),  # few heads, long
)
SMALL = (
    case(1, 1, 2, 8, 16, "float32", state=True),
    case(2, 37, 4, 4, 6, "float32", G=2, state=True, segments=True),
    case(2, 20, 3, 8, 8, "float32", "scalar", G=1, state=True, segments=True),
    case(1, 33, 2, 8, 8, "float32", "none"),
    case(2, 40, 2, 16, 16, "bfloat16", state=True),
)


def example(case: Case, key: Array) -> tuple[Array | None, ...]:
    """q, k, v, log_alpha, initial_state, segment_ids; gates as at the start of training (section 4.4), tau = 16."""
    B, T, H, K, V = (case[n] for n in "BTHKV")
    G, dtype = case.get("G", H), jnp.dtype(case["dtype"])
    keys = jax.random.split(key, 6)
    q, k = (jax.random.normal(keys[i], (B, T, heads, K), dtype) for i, heads in ((0, H), (1, G)))
    v = jax.random.normal(keys[2], (B, T, G, V), dtype) * dtype.type(0.5)
    width = {"channel": K, "scalar": 1, "none": 0}[case["gate"]]
    log_alpha = jax.nn.log_sigmoid(jax.random.normal(keys[3], (B, T, G, width))) / 16 if width else None
    state = jax.random.normal(keys[4], (B, H, K, V)) if case.get("state") else None
    segments = (
        jnp.cumsum(jax.random.bernoulli(keys[5], 3 / T, (B, T)), 1, dtype=jnp.int32) if case.get("segments") else None
    )
    return q, k, v, log_alpha, state, segments


def run(
    q, k, v, log_alpha, initial_state=None, segment_ids=None, *, impl="auto", config=None
) -> tuple[Array, Array | None]:
    """`gla`, where "reference" is the recurrent form. Returns o and the last state."""
    impl = "recurrent" if impl == "reference" else impl
    options = {"initial_state": initial_state, "segment_ids": segment_ids}
    return gla(q, k, v, log_alpha, **options, impl=impl, config=config)


def supports(platform: str, q, k, v, log_alpha, initial_state=None, segment_ids=None) -> Support:
    """Whether the platform's kernel takes these arrays (or their shapes)."""

    def inputs(*arrays: Any) -> Inputs:
        q, k, v, log_alpha, state, segments = arrays
        return canonical(q, k, v, log_alpha, None, None, state, segments)

    return shells.supports(platform, jax.eval_shape(inputs, q, k, v, log_alpha, initial_state, segment_ids))


def configurations(case: Case, platform: str) -> tuple[Any, ...]:
    """Block sizes worth measuring."""
    if platform == "hopper":
        from kernels_pallas.gated_linear_attention.hopper import HopperConfig

        stages = (2, 1, 3) if case["K"] <= 128 else (2, 1)
        return tuple(HopperConfig(stages=s, keep=keep) for keep in (False, True) for s in stages)
    tiles = [0] + [tile for tile in (128, 256) if case["V"] % tile == 0 and tile < case["V"]]
    chunks = (128, 64, 256) if case["K"] <= 256 else (128, 64)
    return tuple(TpuConfig(chunk, tile) for chunk in chunks for tile in tiles)


def floor(case: Case, which: str) -> Floor:
    """Inputs once, outputs once; products of chunks of 64 tokens (arXiv 2312.06635, section 3.3), full tiles; a step a chunk."""
    B, T, H, K, V = (case[n] for n in "BTHKV")
    G, size, C = case.get("G", H), jnp.dtype(case["dtype"]).itemsize, 64
    gate = 4 * {"channel": K, "scalar": 1, "none": 0}[case["gate"]]
    inputs = G * (size * (K + V) + gate) + H * size * K
    forward = B * T * (inputs + H * size * V)
    backward = B * T * (2 * inputs + H * size * V)  # cotangents of inputs are as large as they are
    products = B * T * H * (4 * K * V + 2 * C * (K + V))
    if which == "forward":
        return Floor(forward, products, -(-T // C))
    return Floor(forward + backward, products + B * T * H * (10 * K * V + 6 * C * K + 4 * C * V), 2 * -(-T // C))


OP = Op("gla", run, example, CASES, SMALL, supports, configurations, floor)

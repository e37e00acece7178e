"""Where the kernels of GLA plug in: one shell a platform, imported when it is asked for.

    platform    module      supports          shell                               block sizes
    tpu         tpu.py      supports_tpu      tpu(x, config, interpret=False)     TpuConfig
    hopper      hopper.py   supports_hopper   hopper(x, config)                   HopperConfig

Block sizes are measured ones of tuned.json where there are any, else the defaults. A shell computes what `chunked.chunked`
computes, with gradients, for the inputs that its `supports` takes.
"""

from typing import Any

from jax import Array

from kernels_pallas import configs
from kernels_pallas.gated_linear_attention.inputs import Inputs
from kernels_pallas.platforms import Support, no


def supports(platform: str, x: Inputs) -> Support:
    """Whether the platform's kernel takes `x`, by its shapes and dtypes alone."""
    if platform == "tpu":
        from kernels_pallas.gated_linear_attention.tpu import supports_tpu

        return supports_tpu(x)
    if platform == "hopper":
        from kernels_pallas.gated_linear_attention.hopper import supports_hopper

        return supports_hopper(x)
    return no(f"there is no kernel for {platform!r}")


def run(where: str, x: Inputs, config: Any) -> tuple[Array, Array]:
    """The kernel of "tpu" or "hopper", or the TPU's in Pallas's interpreter where `where` is "interpret".

    Returns o [B,T,G,R,V] and the last state [B,G,R,K,V].
    """
    if where == "hopper":
        from kernels_pallas.gated_linear_attention.hopper import HopperConfig, hopper

        return hopper(x, config or _tuned(x, HopperConfig()))
    from kernels_pallas.gated_linear_attention.tpu import TpuConfig, tpu

    return tpu(x, config or _tuned(x, TpuConfig()), interpret=where == "interpret")


def _tuned(x: Inputs, default: Any) -> Any:
    B, T, G, R, K = x.q.shape
    sizes = {"B": B, "T": T, "H": G * R, "K": K, "V": x.v.shape[-1], "dtype": str(x.q.dtype)}
    return configs.tuned("gla", sizes, default)

"""FLOPs of a jaxpr: 2 x (output size) x (contracted size) for every matrix product and convolution, times the length of
scans.

XLA's own count takes the body of a loop once, which hides all layers but one of a scanned stack. Elementwise work is
left out; a conditional counts its dearest branch, a `while` of unknown length one pass.
"""

import math
from collections.abc import Iterator
from typing import Any


def count_flops(jaxpr: Any) -> float:
    """FLOPs of a ClosedJaxpr (as `jax.make_jaxpr` gives it) over all devices, recomputation included."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_of_equation(equation) for equation in jaxpr.eqns))


def _of_equation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2.0 * math.prod(out) * math.prod(left[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        outputs = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(out) * math.prod(kernel) / outputs
    if name == "cond":
        return max(count_flops(branch) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    return times * sum(count_flops(inner) for inner in _inner(parameters))


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item

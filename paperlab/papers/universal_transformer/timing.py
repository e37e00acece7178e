"""Signals of position and step, which every step of the recurrence adds anew.

    interleaved    P^t[i, 2j] = sin(i / s_j) + sin(t / s_j),  P^t[i, 2j+1] = cos(..) + cos(..),  s_j = 10000^(2j / d)
    concatenated   [sin(i / s_0), sin(i / s_1), ... | cos(i / s_0), ...],  s_j = 10000^(j / (d/2 - 1)); an odd last channel is 0

The paper has the first, counted from 1 (section 2.1); its code the second, counted from 0. In both the signal of a step may be the
same function of its number.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

LAYOUTS = ("interleaved", "concatenated")
FIRST = {"interleaved": 1, "concatenated": 0}


def signal(
    at: Array, channels: int, layout: str, *, max_timescale: float = 10_000.0, dtype: DTypeLike = jnp.float32
) -> Array:
    """Sines and cosines of positions or of a step, [..., channels].

    Args:
      at: numbers of any shape; the paper counts from 1, its code from 0.
      channels: d.
      layout: one of LAYOUTS.
      max_timescale: the longest wave over 2 pi.
      dtype: of the result; at least float32 inside.

    Raises:
      ValueError: a layout that there is not.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    at = jnp.asarray(at).astype(wide)[..., None]
    if layout == "interleaved":
        j = jnp.arange(-(-channels // 2), dtype=wide)
        angle = at / max_timescale ** (2 * j / channels)
        both = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)
        return both.reshape(*both.shape[:-2], -1)[..., :channels].astype(dtype)
    if layout == "concatenated":
        n = channels // 2
        angle = at / max_timescale ** (jnp.arange(n, dtype=wide) / max(n - 1, 1))
        both = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        return jnp.pad(both, [(0, 0)] * (both.ndim - 1) + [(0, channels % 2)]).astype(dtype)
    raise ValueError(f"layout={layout!r}: choose one of {', '.join(LAYOUTS)}")

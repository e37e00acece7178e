"""How planes lie in memory. A group is what a caller holds of states or of coefficients:

    REAL, COMPLEX   one array a plane, [B, T, D]
    BLOCK2          one array of all planes, [B, T, P, D]

A coefficient that is the same at every step is a group of small arrays [B or 1, D], one a plane, whatever the algebra.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import jax.numpy as jnp
from jax import Array

from kernels_pallas.scan.algebra import Planes

Group = tuple[Array, ...]


def planes(group: Group) -> Planes:
    """One array a plane."""
    if len(group) == 1 and group[0].ndim == 4:
        return tuple(group[0][:, :, p] for p in range(group[0].shape[2]))
    return group


def grouped(planes: Planes, like: Group) -> Group:
    """Planes as they lie in `like`, in its dtype."""
    if len(like) == 1 and like[0].ndim == 4:
        planes = (jnp.stack(planes, axis=2),)
    return tuple(p.astype(x.dtype) for p, x in zip(planes, like, strict=True))


def invariant(a: Group) -> bool:
    """Whether a coefficient is the same at every step."""
    return a[0].ndim == 2


def sizes(b: Group) -> tuple[int, int, int]:
    """(B, T, D)."""
    return b[0].shape[0], b[0].shape[1], b[0].shape[-1]


def split(items: Sequence[Any], *counts: int) -> list[tuple]:
    """The first `counts[0]` items, the next `counts[1]`, and so on."""
    return [tuple(items[i:j]) for i, j in pairwise((0, *accumulate(counts)))]

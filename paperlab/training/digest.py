"""A fingerprint of every array, equal on every mesh.

    digest(x) = sum_i mix(bits(x_i), i)  mod 2^32,      i the position in row-major order

An integer sum has no order, so it does not depend on the sharding, and it is computed where the array lies. `mix` is a
bijection of the bits for each i: any change of one element changes the digest for certain, other changes escape with
chance 2^-32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def digests(leaves: list[Any]) -> jax.Array:
    """uint32 [number of leaves]."""
    return _digests(leaves) if leaves else jnp.zeros((0,), jnp.uint32)


@jax.jit
def _digests(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([digest(leaf) for leaf in leaves])


def digest(x: jax.Array) -> jax.Array:
    """uint32 []."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return digest(x.real) + jnp.uint32(0x9E3779B1) * digest(x.imag)
    words = _words(x)
    return _mix(words, _positions(words.shape)).sum(dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of x as uint32; an element of 8 bytes becomes two along a new last axis."""
    size = x.dtype.itemsize
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if size == 8:
        return lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        position += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return position


def _mix(bits: jax.Array, position: jax.Array) -> jax.Array:
    """murmur3's finaliser, whose steps are bijections, on bits xor (an odd multiple of the position)."""
    x = bits ^ (position * jnp.uint32(0x9E3779B1) + jnp.uint32(0x7F4A7C15))
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

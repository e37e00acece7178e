"""Rows of the law table: real and complex linear recurrences, varying and the same at every step."""

import jax
import jax.numpy as jnp

from paperlab.recurrence import complex_scan, linear_scan
from tests.recurrence.laws import Law

B, D = 2, 3
IMPLS = ("in_place", "associative", "chunked")


def _uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, jnp.float32, 0.2, 1.0).astype(dtype)


def _normal(key, shape, dtype):
    return jax.random.normal(key, shape).astype(dtype)


def varying(T, seed, dtype):
    ka, kb, kh = jax.random.split(jax.random.key(seed), 3)
    return {"a": _uniform(ka, (B, T, D), dtype), "b": _normal(kb, (B, T, D), dtype), "h0": _normal(kh, (B, D), dtype)}


def invariant(T, seed, dtype):
    return {**varying(T, seed, dtype), "a": _uniform(jax.random.key(seed + 1), (D,), dtype)}


def turning(T, seed, dtype, time_varying=True):
    """Decays inside the unit disc, at every angle."""
    kr, ka, kb, kh = jax.random.split(jax.random.key(seed), 4)
    shape = (B, T, D) if time_varying else (D,)
    radius = jax.random.uniform(kr, shape, jnp.float32, 0.5, 1.0)
    angle = jax.random.uniform(ka, shape, jnp.float32, -3.0, 3.0)
    a = (radius * jnp.cos(angle)).astype(dtype), (radius * jnp.sin(angle)).astype(dtype)
    b = tuple(_normal(key, (B, T, D), dtype) for key in jax.random.split(kb))
    return {"a": a, "b": b, "h0": tuple(_normal(key, (B, D), dtype) for key in jax.random.split(kh))}


def _run(scan):
    return lambda args, **options: scan(args["a"], args["b"], args["h0"], chunk=16, **options)


LAWS = [
    Law("linear/varying", varying, _run(linear_scan), IMPLS, ("a", "b")),
    Law("linear/invariant", invariant, _run(linear_scan), IMPLS, ("b",), lengths=(1, 3, 64, 65)),
    Law("complex/varying", turning, _run(complex_scan), IMPLS, ("a", "b"), lengths=(1, 2, 63, 64)),
    Law("complex/invariant", lambda *x: turning(*x, False), _run(complex_scan), IMPLS, ("b",), lengths=(1, 65)),
]

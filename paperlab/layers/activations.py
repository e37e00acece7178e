"""Elementwise functions by the name that a config gives them."""

from collections.abc import Callable

import jax
from jax import Array

from paperlab.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "tanh": jax.numpy.tanh,
    "gelu": jax.nn.gelu,
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "elu+1": lambda x: jax.nn.elu(x) + 1.0,
    "relu^2": lambda x: jax.numpy.square(jax.nn.relu(x)),
}


def activation(name: str, field: str) -> Callable[[Array], Array]:
    """The function called `name`; `field` is the option that named it, for the error message."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"{field}={name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]

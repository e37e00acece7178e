"""Transition gates that keep their size over long ways: T = O diag(lambda) I with O and I orthogonal, so that |T|_2 <= 1.

    lambda = tanh(c (b + W x))  |  exp(c logsigmoid(b + W x))  |  exp(-c exp(-(b + W x)))         c = 5
    O, I   = orthogonal(B + W' x)                                               only where JT > 1

With JT = 1 the transition is lambda itself. A negative lambda or a rotation lets a state count modulo something, which a positive
scalar can't. Source: pLSTM (arXiv 2506.11997), equation 10, Table 4 and appendices A.5 and A.6.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer
from jax import Array

from paperlab.layers.gates import TRANSITION_BIAS, Gate
from paperlab.layers.orthogonal import ORTHOGONAL, TERMS, exponential

EIGENVALUES: dict[str, Callable[[Array, float], Array]] = {
    "tanh": lambda x, c: jnp.tanh(c * x),
    "logsigmoid": lambda x, c: jnp.exp(c * jax.nn.log_sigmoid(x)),
    "expexp": lambda x, c: jnp.exp(-c * jnp.exp(-x)),
}


class Transition(nn.Module):
    """[..., D] -> [..., heads, JT, JT] in float32.

    eigenvalues: "tanh" (from -1 to 1), "logsigmoid" or "expexp" (from 0 to 1), with `factor` c.
    bias: of the eigenvalues; 1 makes tanh(5) = 0.9999.
    orthogonal: "exponential" (with `terms`), "householder", "qr" or "qr_lapack".
    symmetric: O is I^T, so T is symmetric and half as many weights.
    spread: standard deviation around the identity of the matrices that O and I start from.
    weights, blocks: of the maps from the input, as in `Gate`.
    """

    heads: int
    JT: int = 1
    eigenvalues: str = "tanh"
    factor: float = 5.0
    bias: float | Initializer = TRANSITION_BIAS
    orthogonal: str = "exponential"
    terms: int = TERMS
    symmetric: bool = False
    spread: float = 0.0
    weights: str = "zeros"
    blocks: int = 1

    def setup(self) -> None:
        gate = partial(Gate, function="identity", weights=self.weights, blocks=self.blocks)
        self.lambdas = gate((self.heads, self.JT), bias=self.bias)
        if self.JT > 1:
            self.inward = gate(self._shape(), bias=self._around_identity)
            if not self.symmetric:
                self.outward = gate(self._shape(), bias=self._around_identity)

    def __call__(self, x: Array) -> Array:
        if self.weights == "none":  # the same at every node: made once
            return jnp.broadcast_to(self._made(x.reshape(-1, x.shape[-1])[0]), (*x.shape[:-1], *self._shape()))
        return self._made(x)

    @nn.nowrap
    def _shape(self) -> tuple[int, int, int]:
        return self.heads, self.JT, self.JT

    def _made(self, x: Array) -> Array:
        eigenvalues = EIGENVALUES[self.eigenvalues](self.lambdas(x), self.factor)
        if self.JT == 1:
            return eigenvalues[..., None]
        inward = self._orthogonal(self.inward(x))
        outward = inward.swapaxes(-1, -2) if self.symmetric else self._orthogonal(self.outward(x))
        return ((outward * eigenvalues[..., None, :])[..., None] * inward[..., None, :, :]).sum(-2)

    def _orthogonal(self, mat: Array) -> Array:
        return exponential(mat, self.terms) if self.orthogonal == "exponential" else ORTHOGONAL[self.orthogonal](mat)

    @nn.nowrap
    def _around_identity(self, key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jnp.eye(shape[-1], dtype=dtype) + self.spread * jax.random.normal(key, shape, dtype)

"""A stage: K unique blocks, each applied B times in succession, every application followed by a projection of its own.

    for u in 0 .. K - 1:  for b in 0 .. B - 1:   x <- NLL_{u, b}( Block_u(x, groups_b, order_b) )

    Block:   x <- a1 x + a2 drop( Attention(LN(x), groups, order) ),   x <- a3 x + a4 drop( MLP(LN(x)) )

The four coefficients belong to the block, so all its applications share them. Parameters: "blocks" [K, ...] and "projections"
[K, B, ...]; lax.scan runs over the blocks, and over neighbouring passes with equal groups, so that a hundred passes compile as one.

Source: SReT, arXiv 2111.05297, section 3 and the authors' code.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from paperlab.layers.norms import LayerNorm
from paperlab.layers.projection import EPS, Perceptron, Projection, coefficients
from paperlab.layers.residual import drop_path
from paperlab.papers.sret.attention import GroupAttention


class Pass(NamedTuple):
    """One of the B passes: its number of groups, and whether an order of tokens goes with it."""

    groups: int = 1
    ordered: bool = False


class Block(nn.Module):
    """x [B, N, width] -> the same shape; stochastic depth acts where an rng "dropout" is given."""

    width: int
    heads: int
    hidden: int
    lrc: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.a = coefficients(self, 4, self.lrc)
        self.mixer_norm, self.ffn_norm = LayerNorm(EPS), LayerNorm(EPS)
        self.mixer = GroupAttention(self.width, self.heads, self.dtype)
        self.ffn = Perceptron(self.width, self.hidden, self.dtype)

    def __call__(self, x: Array, groups: int = 1, order_N: Array | None = None, rate: Array | float = 0.0) -> Array:
        a = self.a.astype(x.dtype)
        x = a[0] * x + a[1] * self._dropped(self.mixer(self.mixer_norm(x), groups, order_N), rate)
        return a[2] * x + a[3] * self._dropped(self.ffn(self.ffn_norm(x)), rate)

    def _dropped(self, x: Array, rate: Array | float) -> Array:
        return drop_path(x, rate, self.make_rng("dropout") if self.has_rng("dropout") else None)


class Stage(nn.Module):
    """unique: K. passes: B of them; fewer where `once`, which applies each block once and keeps its B projections.

    __call__(x [B, N, width], orders int [K, B, N] (rows of passes without order unread), rates float [K, B]).
    """

    width: int
    heads: int
    unique: int
    passes: tuple[Pass, ...]
    hidden: int
    projection_hidden: int
    lrc: bool = True
    nll: bool = True
    once: bool = False
    dtype: DTypeLike = jnp.float32
    remat: Callable[[Any], Any] = lambda body: body

    def setup(self) -> None:
        self.blocks = self.param("blocks", self._stacked(self._block(), (self.unique,)))
        if self.nll:
            lead = (self.unique, len(self.passes))
            self.projections = self.param("projections", self._stacked(self._projection(), lead))

    @nn.nowrap
    def _block(self) -> Block:
        return Block(self.width, self.heads, self.hidden, self.lrc, self.dtype, parent=None)

    @nn.nowrap
    def _projection(self) -> Projection:
        return Projection(self.width, self.projection_hidden, self.lrc, self.dtype, parent=None)

    @nn.nowrap
    def _stacked(self, module: nn.Module, lead: tuple[int, ...]) -> Callable[[Array], Any]:
        """An initialiser of independent copies on leading axes."""

        def one(key: Array) -> Any:
            return module.init(key, jnp.zeros((1, 1, self.width), self.dtype))["params"]

        init = one
        for _ in lead:
            init = jax.vmap(init)
        return lambda key: init(jax.random.split(key, lead))

    def __call__(self, x: Array, orders: Array | None = None, rates: Array | None = None) -> Array:
        B = len(self.passes)
        rates = jnp.zeros((self.unique, B)) if rates is None else rates
        orders = jnp.zeros((self.unique, B, x.shape[1]), jnp.int32) if orders is None else orders
        keys = None
        if self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), (self.unique, B))
        block, projection = self._block(), self._projection()

        def application(one: Pass, params: Any, x: Array, own: Any) -> Array:
            weights, order, rate, key = own
            rngs = None if key is None else {"dropout": key}
            if params is not None:
                given = order if one.ordered else None
                x = jnp.asarray(block.apply({"params": params}, x, one.groups, given, rate, rngs=rngs))
            return x if weights is None else jnp.asarray(projection.apply({"params": weights}, x))

        def unique(x: Array, own: Any) -> tuple[Array, None]:
            params, *each = own
            start = 0
            for (one, applied), run in groupby((p, b == 0 or not self.once) for b, p in enumerate(self.passes)):
                count = len(list(run))
                part = jax.tree.map(lambda a, i=start, n=count: a[i : i + n], tuple(each))
                body = self.remat(partial(application, one, params if applied else None))
                x, _ = jax.lax.scan(partial(_turn, body), x, part)
                start += count
            return x, None

        projections = self.projections if self.nll else None
        return jax.lax.scan(unique, x, (self.blocks, projections, orders, rates, keys))[0]


def _turn(body: Callable[[Array, Any], Array], x: Array, own: Any) -> tuple[Array, None]:
    return body(x, own), None


def passes_of(groups: Sequence[int], layouts: Sequence[str], loops: int) -> tuple[Pass, ...]:
    """The first entry belongs to the first pass, and so on; passes beyond a list take its last entry."""
    found = []
    for b in range(loops):
        count, layout = groups[min(b, len(groups) - 1)], layouts[min(b, len(layouts) - 1)]
        found.append(Pass(count, count > 1 and layout != "raster"))
    return tuple(found)

"""One case of one operation, drawn: sets of arrays, what is differentiated, cotangents, and the part that is checked.

The part is batch row 0 and the first time steps (the first rows and columns of a grid). Every operation here is causal and does not
mix rows, so that this part of its results depends on the same part of its arguments alone; cotangents that are zero elsewhere make
the same true of gradients.
"""

from collections.abc import Callable
from functools import cached_property, partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.bench.timing import sets
from kernels_pallas.op import Case, Op

CAUSAL = {"T": 256, "X": 16, "Y": 16}  # the steps along each causal axis that are checked
Arrays = tuple[Any, ...]
_numbers = count()


def is_floating(x: Any) -> bool:
    """Whether it is an array that can be differentiated."""
    return x is not None and jnp.issubdtype(x.dtype, jnp.inexact)


def size(tree: Any) -> int:
    """Bytes of its arrays."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def cut(x: Any, shape: tuple[int, ...]) -> Any:
    """The first entries along every axis."""
    return x[tuple(slice(0, n) for n in shape)]


def pad(x: Any, like: Any) -> jax.Array:
    """Zeros in the shape and dtype of `like`, with x where `cut` takes it from."""
    return jnp.zeros(like.shape, like.dtype).at[tuple(slice(0, n) for n in x.shape)].set(x.astype(like.dtype))


class Subject:
    """What is measured.

    Args:
      op: the operation.
      case: its sizes.
      seed: of the draws.
      most_sets: of inputs, drawn so that together they do not fit a cache.
    """

    def __init__(self, op: Op, case: Case, seed: int = 0, most_sets: int = 8):
        self.number = next(_numbers)  # no two subjects have the same
        self.op, self.case, self.seed, self.most_sets = op, dict(case), seed, most_sets
        self.shorter = {name: most for name, most in CAUSAL.items() if self.case.get(name, 0) > most}
        self.small = self.case | self.shorter | ({"B": 1} if "B" in self.case else {})

    @cached_property
    def sets(self) -> list[Arrays]:
        """The sets of arguments; `None` stands for what is left out."""
        key = jax.random.key(self.seed)
        draw = jax.jit(partial(self.op.example, self.case))
        first = draw(key)
        more = min(self.most_sets, sets(size(first))) - 1
        return [first, *(draw(jax.random.fold_in(key, number)) for number in range(1, more + 1))]

    @property
    def arrays(self) -> Arrays:
        """The first set, the one that is checked."""
        return self.sets[0]

    @cached_property
    def part(self) -> Arrays:
        """The arguments of the part that is checked."""
        shapes = self._shapes(self.small)
        pairs = zip(self.arrays, shapes, strict=True)
        return tuple(None if x is None else cut(x, shape.shape) for x, shape in pairs)

    @cached_property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of the results."""
        return self._outputs(self.case)

    @cached_property
    def checked(self) -> list[tuple[int, ...] | None]:
        """Shapes of the checked part of the results; None for what depends on steps that are left out: the last state."""
        left_out = [False] * len(self.outputs)
        for name, most in self.shorter.items():
            pairs = zip(self.outputs, self._outputs(self.case | {name: most}), left_out, strict=True)
            left_out = [already or a.shape == b.shape for a, b, already in pairs]
        return [None if out else x.shape for x, out in zip(self._outputs(self.small), left_out, strict=True)]

    def cotangents(self, *, part: bool) -> list[jax.Array]:
        """Of all results, drawn; with `part` zero outside the part that is checked."""
        key = jax.random.key(self.seed + 1)
        found = []
        for number, (x, checked) in enumerate(zip(self.outputs, self.checked, strict=True)):
            shape = (checked or ()) if part else x.shape
            drawn = jax.random.normal(jax.random.fold_in(key, number), shape).astype(x.dtype)
            if part:
                drawn = jnp.zeros(x.shape, x.dtype) if checked is None else pad(drawn, x)
            found.append(drawn)
        return found

    def _shapes(self, case: Case) -> Arrays:
        return jax.eval_shape(partial(self.op.example, case), jax.random.key(0))

    def _outputs(self, case: Case) -> list[jax.ShapeDtypeStruct]:
        shapes = self._shapes(case)
        present = [x for x in shapes if x is not None]
        run = partial(self.op.run, impl="reference")
        return jax.tree.leaves(jax.eval_shape(lambda *given: run(*restore(shapes, given)), *present))


def restore(arrays: Arrays, present: Any) -> Arrays:
    """`present` in the places of what is not None in `arrays`."""
    given = iter(present)
    return tuple(None if x is None else next(given) for x in arrays)


def split(arrays: Arrays) -> tuple[list[Any], Callable[[Any], Arrays]]:
    """(the floating arrays, a function that puts others in their places)."""
    chosen = [x for x in arrays if is_floating(x)]

    def merge(floating: Any) -> Arrays:
        given = iter(floating)
        return tuple(next(given) if is_floating(x) else x for x in arrays)

    return chosen, merge

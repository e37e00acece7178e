"""Depth programs: which layer runs when, as data.

    x_{j+1} = f(theta_{layers[j]}, delta_j, x_j)      j = 0 .. n - 1, the applications

A program says which of a few unique layers each application uses and to which loop it belongs. What differs between applications
of one layer (`delta_j`: LoRA, norms, step embeddings, interleaved layers) and what is remembered (caches) is keyed by application,
never by layer.

    plain(4)                              0 1 2 3
    loop(2, 3, before=1, after=1)         0 | 1 2 | 1 2 | 1 2 | 3
    shared(6, 3, "cycle")                 0 1 | 0 1 | 0 1
    shared(6, 3, "sequence")              0 0 0 1 1 1
    chain([0, 2, 2, 1], unique=3)         0 2 2 1

Sources: Universal Transformer (arXiv 1807.03819), Relaxed Recursive Transformers (2410.20672, section 3.1 and appendix B),
Mixture-of-Recursions (2507.10524, table 5), CoLa (2507.07996).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from paperlab.errors import ConfigError

OUTSIDE = -1  # the loop of an application that belongs to none
SHARINGS = ("cycle", "sequence", "middle_cycle", "middle_sequence", "cycle_rev")


class Loops(NamedTuple):
    """A program that is `before`, then `block` `times` times, then `after`; each the ids of layers."""

    before: tuple[int, ...]
    block: tuple[int, ...]
    times: int
    after: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A sequence of applications over `unique` layers.

    Args:
      layers: the unique layer of each application.
      unique: how many unique layers there are; some may never run.
      loops: the loop of each application, from 0, or `OUTSIDE`; all `OUTSIDE` if omitted.

    Raises:
      ConfigError: a layer that there is not, loops that do not count from 0, nothing to run.
    """

    layers: tuple[int, ...]
    unique: int
    loops: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("a depth program must apply at least one layer")
        wrong = [i for i in self.layers if not 0 <= i < self.unique]
        if wrong:
            raise ConfigError(f"a depth program names layer {wrong[0]}, there are 0 to {self.unique - 1}")
        if not self.loops:
            object.__setattr__(self, "loops", (OUTSIDE,) * len(self.layers))
        known = sorted(set(self.loops) - {OUTSIDE})
        if len(self.loops) != len(self.layers) or known != list(range(len(known))):
            raise ConfigError(
                f"a depth program of {len(self.layers)} applications has loops {self.loops}: number them 0, 1, ..."
            )

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def times(self) -> int:
        """Number of loops."""
        return max(self.loops) + 1

    @property
    def is_plain(self) -> bool:
        """Whether every unique layer runs once, in order."""
        return self.layers == tuple(range(self.unique))

    @property
    def visits(self) -> tuple[int, ...]:
        """How often each unique layer runs."""
        counts = Counter(self.layers)
        return tuple(counts[i] for i in range(self.unique))

    @property
    def occurrences(self) -> tuple[int, ...]:
        """How often the layer of each application has run before."""
        seen: Counter[int] = Counter()
        found = []
        for i in self.layers:
            found.append(seen[i])
            seen[i] += 1
        return tuple(found)

    @cached_property
    def periods(self) -> Loops | None:
        """The program as a block that repeats, or None where its loops are not equal blocks one after another."""
        inside = [j for j, loop in enumerate(self.loops) if loop != OUTSIDE]
        if not inside or len(inside) % self.times:
            return None
        first, last, size = inside[0], inside[-1] + 1, len(inside) // self.times
        block = self.layers[first : first + size]
        wanted = [loop for loop in range(self.times) for _ in range(size)]
        if list(self.loops[first:last]) != wanted or self.layers[first:last] != block * self.times:
            return None
        return Loops(self.layers[:first], block, self.times, self.layers[last:])


def plain(depth: int) -> Program:
    """Every layer once."""
    return Program(tuple(range(depth)), depth)


def loop(unique: int, times: int, *, before: int = 0, after: int = 0) -> Program:
    """`unique` layers run `times` times, between layers of their own that run once.

    Raises:
      ConfigError: nothing to repeat.
    """
    if unique < 1 or times < 1 or min(before, after) < 0:
        raise ConfigError(
            f"a loop of {unique} layers, {times} times: both must be at least 1, before and after at least 0"
        )
    block = tuple(range(before, before + unique))
    layers = (*range(before), *block * times, *range(before + unique, before + unique + after))
    middle = tuple(r for r in range(times) for _ in block)
    return Program(layers, before + unique + after, (OUTSIDE,) * before + middle + (OUTSIDE,) * after)


def shared(depth: int, times: int, sharing: str) -> Program:
    """`depth` applications of which each layer runs `times` times, in one of the patterns in use.

        cycle            l mod K                                sequence          floor(l / times)            K = depth / times
        middle_cycle     the same for all but the first and     middle_sequence   likewise                   K = (depth - 2) / times
                         the last layer, which run once
        cycle_rev        the block, then the block in reverse order (two times)

    Raises:
      ConfigError: a pattern that there is not, or a depth that `times` does not divide.
    """
    if sharing not in SHARINGS:
        raise ConfigError(f"sharing={sharing!r}: choose one of {', '.join(SHARINGS)}")
    middle = sharing.startswith("middle")
    inner = depth - 2 if middle else depth
    if times < 1 or inner < 1 or inner % times:
        of = f"{depth} - 2 = {inner}" if middle else str(depth)
        raise ConfigError(f"sharing={sharing!r} of {depth} layers: {times} loops must divide {of}")
    if sharing == "cycle_rev" and times != 2:
        raise ConfigError(f"sharing='cycle_rev' has two loops, not {times}")
    K = inner // times
    if sharing == "cycle_rev":
        ids, loops = [*range(K), *reversed(range(K))], [0] * K + [1] * K
    elif sharing.endswith("sequence"):
        ids, loops = [l // times for l in range(inner)], [l % times for l in range(inner)]
    else:
        ids, loops = [l % K for l in range(inner)], [l // K for l in range(inner)]
    if not middle:
        return Program(tuple(ids), K, tuple(loops))
    return Program((0, *(i + 1 for i in ids), K + 1), K + 2, (OUTSIDE, *loops, OUTSIDE))


def chain(layers: Iterable[int], unique: int) -> Program:
    """Any order: layers left out, repeated, exchanged. Every run of a layer is a loop of its own in no sense: all `OUTSIDE`."""
    return Program(tuple(layers), unique)


def parse(text: str, depth: int) -> Program:
    """The program that a config says in a word, for `depth` applications.

        ""                    plain
        "loop:3"              all layers, 3 times: depth / 3 unique ones          "loop:3,1,1"   1 of them before, 1 after
        "cycle:3" and the other patterns of `shared`
        "chain:0,1,1,2"       these layers; the highest number says how many there are; `depth` is not used

    Raises:
      ConfigError: none of these.
    """
    if not text:
        return plain(depth)
    kind, _, rest = text.partition(":")
    try:
        numbers = [int(part) for part in rest.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r}: say a kind and whole numbers, such as 'loop:3' or 'middle_cycle:2'") from None
    if kind == "chain":
        return chain(numbers, max(numbers) + 1)
    if kind == "loop" and len(numbers) in (1, 3):
        times, before, after = (*numbers, 0, 0)[:3]
        inner = depth - before - after
        if times < 1 or inner < 1 or inner % times:
            raise ConfigError(f"{text!r} of {depth} layers: {times} loops must divide the {inner} between")
        return loop(inner // times, times, before=before, after=after)
    if kind in SHARINGS and len(numbers) == 1:
        return shared(depth, numbers[0], kind)
    raise ConfigError(
        f"{text!r}: say loop:R, loop:R,before,after, chain:ids, or a pattern ({', '.join(SHARINGS)}) and :R"
    )

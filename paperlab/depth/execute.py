"""Runs a depth program over any layer: one compiled body wherever the program repeats itself.

    how        what it is                                                           for
    scan       lax.scan over the stacked weights                                    plain programs
    loops      lax.scan over loops, the block inside, weights closed over           a block that repeats
    indexed    lax.scan over layer numbers, weights looked up                       any order, one kind of layer
    unrolled   one application after another                                        anything

All give the same numbers. A layer may be of several kinds (say two mixers); parameters, what is an application's own, and states
are then trees by kind. Parameters are stacked by unique layer, the other two by application of that kind.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from paperlab.depth.program import Program
from paperlab.depth.stack import scan_pattern

Tree = Any
Layer = Callable[..., tuple[Array, Tree]]
HOW = ("auto", "scan", "loops", "indexed", "unrolled")


class Layers(NamedTuple):
    """kinds: of every unique layer, in order. params: {kind: trees stacked over the unique layers of that kind}."""

    kinds: tuple[str, ...]
    params: Mapping[str, Tree]


class Place(NamedTuple):
    """Where an application finds its own: kind, unique layer among those of its kind, application among those of its kind."""

    kind: str
    layer: int
    slot: int


def places(program: Program, kinds: tuple[str, ...]) -> list[Place]:
    """The place of every application."""
    index = [kinds[:u].count(kind) for u, kind in enumerate(kinds)]
    slots = dict.fromkeys(kinds, 0)
    found = []
    for u in program.layers:
        kind = kinds[u]
        found.append(Place(kind, index[u], slots[kind]))
        slots[kind] += 1
    return found


def run(
    layer: Layer,
    program: Program,
    layers: Layers,
    x: Array,
    *,
    own: Mapping[str, Tree] | None = None,
    states: Mapping[str, Tree] | None = None,
    keys: Array | None = None,
    remat: Callable[[Any], Any] = lambda body: body,
    how: str = "auto",
    unroll: int = 1,
) -> tuple[Array, dict[str, Tree]]:
    """Applies `layer(kind, params, own, x, state, key) -> (x, out)` as the program says.

    Args:
      layer: one layer; its `out` is any pytree of arrays, or None.
      program: over `len(layers.kinds)` unique layers.
      x: what runs through.
      own: {kind: what belongs to each application}, stacked over applications; the layer gets None where there is none.
      states: the same for what each application remembers.
      keys: one key an application.
      remat: wraps the function of one application, or of one period of a plain stack of several kinds.
      how: see above; "auto" takes the first that can.
      unroll: of a scan over a plain stack.

    Returns:
      x after the last application, and {kind: outs} stacked over applications.

    Raises:
      ValueError: `how` is unknown or cannot run this program.
    """
    if how not in HOW:
        raise ValueError(f"how={how!r}: choose one of {', '.join(HOW)}")
    if len(layers.kinds) != program.unique:
        raise ValueError(f"the program has {program.unique} layers, {len(layers.kinds)} are given")
    able = {
        "scan": program.is_plain and _period(layers.kinds) is not None,
        "loops": program.periods is not None,
        "indexed": len(set(layers.kinds)) == 1,
        "unrolled": True,
    }
    chosen = next(name for name, can in able.items() if can) if how == "auto" else how
    if not able[chosen]:
        raise ValueError(f"how={how!r} cannot run the program {program.layers} over layers {layers.kinds}")
    stacks = {
        kind: (own[kind] if own else None, states[kind] if states else None) for kind in dict.fromkeys(layers.kinds)
    }
    if chosen == "scan":
        return _scan(layer, program, layers, x, stacks, keys, remat, unroll)
    if chosen == "loops":
        return _loops(layer, program, layers, x, stacks, keys, remat)
    if chosen == "indexed":
        return _indexed(layer, program, layers, x, stacks, keys, remat)
    return _unrolled(layer, program, layers, x, stacks, keys, remat)


def run_chain(
    layer: Callable[..., tuple[Array, Tree]],
    ids_N: Array,
    params: Tree,
    x: Array,
    *,
    own: Tree = None,
    states: Tree = None,
) -> tuple[Array, Tree]:
    """A program that is an array: one compilation serves every chain of at most N layers of one kind.

    Args:
      layer: (params, own, x, state) -> (x, state); the state is None where none is given.
      ids_N: int32, the layers in order; -1 is padding, and passes x and state on.
      params: stacked over unique layers.
      own, states: stacked over the N places of the chain.

    Returns:
      x, and the states after the chain.
    """

    def body(x: Array, now: tuple) -> tuple[Array, Tree]:
        i, own, state = now

        def apply(_: None) -> tuple[Array, Tree]:
            return layer(jax.tree.map(lambda a: a[jnp.maximum(i, 0)], params), own, x, state)

        return lax.cond(i >= 0, apply, lambda _: (x, state), None)

    return lax.scan(body, x, (ids_N, own, states))


def _period(kinds: tuple[str, ...]) -> tuple[str, ...] | None:
    """The shortest pattern that, repeated and cut short, gives the kinds."""
    for n in range(1, len(kinds) + 1):
        if all(kind == kinds[i % n] for i, kind in enumerate(kinds)):
            return kinds[:n]
    return None


def _at(tree: Tree, i: Any) -> Tree:
    return jax.tree.map(lambda a: a[i], tree)


def _scan(layer, program, layers, x, stacks, keys, remat, unroll):
    pattern = _period(layers.kinds) or layers.kinds

    def one(kind, params, x, both, key):
        return layer(kind, params[0], params[1], x, both, key)

    per_layer = {kind: ((layers.params[kind], stacks[kind][0]), stacks[kind][1]) for kind in stacks}
    return scan_pattern(one, pattern, len(program), x, per_layer, keys, remat, unroll)


def _one(layer, layers, stacks, place, x, key):
    own, state = _at(stacks[place.kind], place.slot)
    return layer(place.kind, _at(layers.params[place.kind], place.layer), own, x, state, key)


def _walk(layer, layers, stacks, found, x, keys, remat):
    """Applications one after another; {kind: list of outs}."""
    outs: dict[str, list] = {}
    for n, place in enumerate(found):
        body = remat(lambda x, key, place=place: _one(layer, layers, stacks, place, x, key))
        x, out = body(x, None if keys is None else keys[n])
        outs.setdefault(place.kind, []).append(out)
    return x, {kind: jax.tree.map(lambda *a: jnp.stack(a), *found) for kind, found in outs.items()}


def _joined(parts: list[dict[str, Tree]]) -> dict[str, Tree]:
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    merged = {kind: [part[kind] for part in parts if kind in part] for kind in kinds}
    return {kind: jax.tree.map(lambda *a: jnp.concatenate(a), *found) for kind, found in merged.items()}


def _unrolled(layer, program, layers, x, stacks, keys, remat):
    return _walk(layer, layers, stacks, places(program, layers.kinds), x, keys, remat)


def _indexed(layer, program, layers, x, stacks, keys, remat):
    kind = layers.kinds[0]

    @remat
    def body(x, now):
        u, (own, state), key = now
        return layer(kind, _at(layers.params[kind], u), own, x, state, key)

    x, out = lax.scan(body, x, (jnp.asarray(program.layers), stacks[kind], keys))
    return x, {kind: out}


def _loops(layer, program, layers, x, stacks, keys, remat):
    """Before and after are walked; inside, loop r sees the slots of its own applications."""
    found = places(program, layers.kinds)
    before, block, times, _ = program.periods
    start, size = len(before), len(block)
    stop = start + size * times
    inner = found[start : start + size]
    counts = {kind: sum(place.kind == kind for place in inner) for kind in stacks}
    first = {kind: sum(place.kind == kind for place in found[:start]) for kind in stacks}

    def in_loops(kind):
        n, at = counts[kind], first[kind]
        return jax.tree.map(lambda a: a[at : at + n * times].reshape(times, n, *a.shape[1:]), stacks[kind])

    def part(i, j):
        return None if keys is None else keys[i:j]

    parts = []
    x, out = _walk(layer, layers, stacks, found[:start], x, part(0, start), remat)
    parts.append(out)
    kinds = {place.kind for place in inner}
    block_of_one = None
    if len(kinds) == 1:
        block_of_one = _at(layers.params[inner[0].kind], jnp.asarray([place.layer for place in inner]))
    mine = [place._replace(slot=place.slot - first[place.kind]) for place in inner]

    def once(x, now):
        stacks, keys = now
        if block_of_one is None:
            return _walk(layer, layers, stacks, mine, x, keys, remat)
        (kind,) = kinds

        @remat
        def body(x, now):
            params, (own, state), key = now
            return layer(kind, params, own, x, state, key)

        x, out = lax.scan(body, x, (block_of_one, stacks[kind], keys))
        return x, {kind: out}

    inside = {kind: in_loops(kind) for kind in kinds}
    looped = None if keys is None else keys[start:stop].reshape(times, size, *keys.shape[1:])
    x, out = lax.scan(once, x, (inside, looped), length=times)
    parts.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out))
    x, out = _walk(layer, layers, stacks, found[stop:], x, part(stop, len(program)), remat)
    parts.append(out)
    return x, _joined([part for part in parts if part])

"""Programs are what the papers' tables say; every way to run one gives the numbers of a Python loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.depth.execute import HOW, Layers, places, run, run_chain
from paperlab.depth.program import OUTSIDE, Program, chain, loop, parse, plain, shared
from paperlab.errors import ConfigError

PROGRAMS = {
    "plain": plain(4),
    "loop": loop(2, 3, before=1, after=1),
    "loop of one": loop(1, 4),
    "loop of three": loop(3, 2, before=1),
    "cycle": shared(6, 3, "cycle"),
    "sequence": shared(6, 3, "sequence"),
    "middle_cycle": shared(8, 3, "middle_cycle"),
    "middle_sequence": shared(8, 3, "middle_sequence"),
    "reversed": shared(6, 2, "cycle_rev"),
    "chain": chain([3, 0, 0, 2], 4),
}


@pytest.mark.parametrize(
    ("program", "layers"),
    [
        (shared(6, 3, "cycle"), (0, 1, 0, 1, 0, 1)),
        (shared(6, 3, "sequence"), (0, 0, 0, 1, 1, 1)),
        (shared(8, 3, "middle_cycle"), (0, 1, 2, 1, 2, 1, 2, 3)),
        (shared(8, 3, "middle_sequence"), (0, 1, 1, 1, 2, 2, 2, 3)),
        (shared(6, 2, "cycle_rev"), (0, 1, 2, 2, 1, 0)),
        (loop(2, 2, before=1, after=1), (0, 1, 2, 1, 2, 3)),
        (parse("loop:3", 6), (0, 1, 0, 1, 0, 1)),
        (parse("loop:2,1,1", 6), (0, 1, 2, 1, 2, 3)),
        (parse("chain:0,1,1,2", 9), (0, 1, 1, 2)),
        (parse("", 3), (0, 1, 2)),
    ],
)
def test_programs(program, layers):
    assert program.layers == layers
    assert sum(program.visits) == len(program)
    assert [program.layers[:j].count(u) for j, u in enumerate(program.layers)] == list(program.occurrences)


def test_loops_of_a_program():
    found = PROGRAMS["middle_cycle"].periods
    assert (found.before, found.block, found.times, found.after) == ((0,), (1, 2), 3, (3,))
    assert PROGRAMS["middle_cycle"].loops == (OUTSIDE, 0, 0, 1, 1, 2, 2, OUTSIDE)
    assert PROGRAMS["sequence"].periods is None
    assert PROGRAMS["plain"].periods is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: shared(7, 3, "cycle"),
        lambda: shared(8, 4, "middle_cycle"),
        lambda: shared(6, 3, "spiral"),
        lambda: shared(6, 3, "cycle_rev"),
        lambda: loop(0, 3),
        lambda: chain([0, 3], 3),
        lambda: chain([], 3),
        lambda: Program((0, 1), 2, (1, 1)),
        lambda: parse("loop:x", 4),
        lambda: parse("loop:3", 4),
        lambda: parse("cycle:2,3", 4),
    ],
)
def test_what_is_no_program_is_refused_in_one_line(make):
    with pytest.raises(ConfigError) as error:
        make()
    assert "\n" not in str(error.value)


def layer(kind, params, own, x, state, key):
    x = jnp.sin(params["w"] * x + (1.0 if kind == "b" else 0.0))
    x = x if own is None else x + own["delta"]
    x = x if state is None else x * (1 + state)
    return x, {"state": x + params["w"], "noise": None if key is None else jax.random.uniform(key)}


def given(program, kinds, with_own, with_states):
    draw = np.random.default_rng(0)
    params = {kind: {"w": jnp.asarray(draw.uniform(0.5, 1.5, kinds.count(kind)))} for kind in dict.fromkeys(kinds)}
    found = places(program, kinds)
    count = {kind: sum(place.kind == kind for place in found) for kind in params}
    own = {kind: {"delta": jnp.asarray(draw.uniform(size=n))} for kind, n in count.items()} if with_own else None
    states = {kind: jnp.asarray(draw.uniform(size=n)) for kind, n in count.items()} if with_states else None
    return Layers(kinds, params), own, states


def pick(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def by_loop(program, layers, x, own, states, keys):
    outs = {}
    for j, place in enumerate(places(program, layers.kinds)):
        mine = None if own is None else pick(own[place.kind], place.slot)
        state = None if states is None else states[place.kind][place.slot]
        x, out = layer(
            place.kind, pick(layers.params[place.kind], place.layer), mine, x, state, None if keys is None else keys[j]
        )
        outs.setdefault(place.kind, []).append(out)
    return x, {kind: jax.tree.map(lambda *a: jnp.stack(a), *found) for kind, found in outs.items()}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("pattern", "extras"), [("a", True), ("a", False), ("ab", True), ("aab", False)])
def test_every_way_equals_a_loop(name, how, pattern, extras):
    program = PROGRAMS[name]
    kinds = tuple(pattern[u % len(pattern)] for u in range(program.unique))
    layers, own, states = given(program, kinds, extras, extras)
    keys = jax.random.split(jax.random.key(0), len(program)) if extras else None
    x = jnp.asarray(0.3)
    able = {"scan": program.is_plain, "loops": program.periods is not None, "indexed": len(set(kinds)) == 1}
    if not able.get(how, True):
        with pytest.raises(ValueError, match="cannot run"):
            run(layer, program, layers, x, own=own, states=states, keys=keys, how=how)
        return
    got, outs = run(layer, program, layers, x, own=own, states=states, keys=keys, remat=jax.checkpoint, how=how)
    want, outs_of_loop = by_loop(program, layers, x, own, states, keys)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), outs, outs_of_loop)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_applications(name):
    program = PROGRAMS[name]
    tied, own, states = given(program, ("a",) * program.unique, True, True)
    untied = {"a": jax.tree.map(lambda w: w[jnp.asarray(program.layers)], tied.params["a"])}
    each = plain(len(program))

    def loss(params, program):
        layers = Layers(("a",) * program.unique, params)
        return run(layer, program, layers, jnp.asarray(0.3), own=own, states=states)[0]

    np.testing.assert_allclose(loss(tied.params, program), loss(untied, each), rtol=1e-6)
    whole, parts = jax.grad(loss)(tied.params, program), jax.grad(loss)(untied, each)
    summed = jnp.zeros(program.unique).at[jnp.asarray(program.layers)].add(parts["a"]["w"])
    np.testing.assert_allclose(whole["a"]["w"], summed, rtol=1e-5)


def test_one_compilation_serves_every_chain_of_a_length():
    layers, own, states = given(chain([0] * 6, 4), ("a",) * 4, True, True)
    traced = []

    @jax.jit
    def chained(ids, x):
        traced.append(1)

        def one(params, own, x, state):
            x, out = layer("a", params, own, x, state, None)
            return x, out["state"]

        return run_chain(one, ids, layers.params["a"], x, own=own["a"], states=states["a"])

    for ids in ([0, 1, 2, 3, -1, -1], [3, 3, 0, 1, 2, 2], [1, -1, -1, -1, -1, -1]):
        got, after = chained(jnp.asarray(ids), jnp.asarray(0.3))
        program = chain([i for i in ids if i >= 0], 4)
        n = len(program)
        first_own, first_states = jax.tree.map(lambda a, n=n: a[:n], (own, states))
        want, outs = by_loop(program, layers, jnp.asarray(0.3), first_own, first_states, None)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(after[:n], outs["a"]["state"], rtol=1e-6)
        np.testing.assert_array_equal(after[n:], states["a"][n:])
    assert len(traced) == 1


def test_a_loop_is_compiled_once():
    program = loop(3, 5, before=1)
    layers, _, _ = given(program, ("a",) * 4, False, False)
    text = str(
        jax.make_jaxpr(lambda p: run(layer, program, Layers(layers.kinds, p), jnp.asarray(0.3))[0])(layers.params)
    )
    assert text.count("scan[") == 2
    assert text.count("sin") == 2  # the layer before, and the block

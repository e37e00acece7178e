"""Laws of every recurrence, one table: rows_*.py beside this file."""

import importlib
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.recurrence.laws import close, compiled, differentiated, joined, split

ROWS = sorted(file.stem for file in Path(__file__).parent.glob("rows_*.py"))
LAWS = [law for name in ROWS for law in importlib.import_module(f"tests.recurrence.{name}").LAWS]
EVERY = [("sequential", law) for law in LAWS] + [(impl, law) for law in LAWS for impl in law.impls]
OTHERS = [(impl, law) for law in LAWS for impl in law.impls]
LENGTHS = [(impl, law, T) for impl, law in OTHERS for T in law.lengths]


def _names(cases):
    return ["-".join(getattr(part, "name", str(part)) for part in case) for case in cases]


@pytest.mark.parametrize(("impl", "law", "T"), LENGTHS, ids=_names(LENGTHS))
def test_equals_sequential_with_all_gradients(impl, law, T):
    args = law.draw(T, T, jnp.float32)
    want, want_gradients = differentiated(law, "sequential")(args)
    got, gradients = differentiated(law, impl)(args)
    close(got, want, law.tolerance["float32"])
    close(gradients, want_gradients, 10 * law.tolerance["float32"])
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, args)


@pytest.mark.parametrize(("impl", "law"), OTHERS, ids=_names(OTHERS))
def test_equals_sequential_in_float64(impl, law):
    with jax.enable_x64(True):
        args = law.draw(65, 0, jnp.float64)
        want, want_gradients = differentiated(law, "sequential")(args)
        got, gradients = differentiated(law, impl)(args)
        close((got, gradients), (want, want_gradients), law.tolerance["float64"])
        assert {x.dtype for x in jax.tree.leaves((got, gradients))} == {jnp.dtype(jnp.float64)}


@pytest.mark.parametrize(("impl", "law"), EVERY, ids=_names(EVERY))
def test_bfloat16_inputs_have_float32_carries(impl, law):
    args = law.draw(64, 0, jnp.bfloat16)
    outputs, last = compiled(law, impl)(args)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(last)} == {jnp.dtype(jnp.float32)}
    exact = compiled(law, "sequential")(jax.tree.map(lambda x: x.astype(jnp.float32), args))
    close(outputs, exact[0], law.tolerance["bfloat16"])
    close(last, exact[1], law.tolerance["float32"])


@pytest.mark.parametrize(("impl", "law"), EVERY, ids=_names(EVERY))
def test_split_with_carried_state_equals_whole(impl, law):
    args = law.draw(64, 1, jnp.float32)
    whole, last = compiled(law, impl)(args)
    for cut in (1, 16, 63):
        first, second = split(law, args, cut)
        left, carried = compiled(law, impl)(first)
        right, end = compiled(law, impl)({**second, law.state: carried})
        close((joined(left, right), end), (whole, last), law.tolerance["float32"])


PACKED = [case for case in EVERY if case[1].segments]


@pytest.mark.parametrize(("impl", "law"), PACKED, ids=_names(PACKED))
def test_packed_equals_separate(impl, law):
    """Three documents in one row, the first and the last with one id; the state belongs to the first."""
    args = law.draw(64, 2, jnp.float32)
    borders = (0, 17, 40, 64)
    ids = jnp.broadcast_to(
        jnp.repeat(jnp.array([7, 3, 7]), jnp.diff(jnp.array(borders)), total_repeat_length=64), (2, 64)
    )
    got, last = compiled(law, impl)(args, ids)
    state, parts = args[law.state], []
    for begin, end in pairwise(borders):
        document = split(law, split(law, args, end)[0], begin)[1]
        outputs, state = compiled(law, impl)({**document, law.state: state})
        parts, ended = [*parts, outputs], state
        state = jax.tree.map(jnp.zeros_like, args[law.state])
    close(got, joined(joined(parts[0], parts[1]), parts[2]), law.tolerance["float32"])
    close(last, ended, law.tolerance["float32"])


REVERSIBLE = [case for case in EVERY if case[1].reversible]


@pytest.mark.parametrize(("impl", "law"), REVERSIBLE, ids=_names(REVERSIBLE))
def test_reverse_equals_flip_run_flip(impl, law):
    args = law.draw(63, 3, jnp.float32)
    flipped = {k: jax.tree.map(lambda x: x[:, ::-1], v) if k in law.time else v for k, v in args.items()}
    ids = jnp.repeat(jnp.arange(3), 21)[None].repeat(2, 0) if law.segments else None
    got, last = compiled(law, impl, True)(args, ids)
    want, want_last = compiled(law, impl)(flipped, None if ids is None else ids[:, ::-1])
    close((got, last), (jax.tree.map(lambda x: x[:, ::-1], want), want_last), law.tolerance["float32"])


@pytest.mark.parametrize(("impl", "law"), OTHERS, ids=_names(OTHERS))
def test_gradients_in_reverse_and_over_borders(impl, law):
    if not (law.reversible and law.segments):
        pytest.skip("neither reversed nor packed")
    args = law.draw(20, 4, jnp.float32)
    ids = jnp.repeat(jnp.arange(4), 5)[None].repeat(2, 0)

    def value(args, impl):
        outputs, last = law.run(args, impl=impl, reverse=True, segment_ids=ids)
        return sum(
            (leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))).sum()
            for leaf in jax.tree.leaves((outputs, last))
        )

    want = jax.jit(jax.grad(value), static_argnums=1)(args, "sequential")
    close(jax.jit(jax.grad(value), static_argnums=1)(args, impl), want, 10 * law.tolerance["float32"])
    assert jax.tree.structure(want) == jax.tree.structure(args)


@pytest.mark.parametrize(("impl", "law"), EVERY, ids=_names(EVERY))
def test_under_vmap_and_sharded_over_devices(impl, law):
    """vmap over two draws equals one after the other; eight rows on eight devices equal the same rows on one."""
    draws = [law.draw(8, seed, jnp.float32) for seed in range(4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *draws)
    got = jax.jit(jax.vmap(lambda args: law.run(args, impl=impl)))(stacked)
    want = [compiled(law, impl)(args) for args in draws]
    close(got, jax.tree.map(lambda *x: jnp.stack(x), *want), law.tolerance["float32"])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = {k: _rows(v, draws[0][k], k in law.time or k == law.state) for k, v in stacked.items()}
    spread = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("data") if x.shape[0] == 8 else P())), rows)
    outputs, last = compiled(law, impl)(spread)
    close(
        (outputs, last),
        jax.tree.map(lambda *x: jnp.concatenate(x), *_per_row(law, impl, draws, rows)),
        law.tolerance["float32"],
    )
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(outputs))


def _rows(stacked, one, batched):
    """Four draws of two rows as eight rows; what has no batch axis is that of the first draw."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked) if batched else one


def _per_row(law, impl, draws, rows):
    shared = {k: v for k, v in rows.items() if not (k in law.time or k == law.state)}
    return [compiled(law, impl)({**args, **shared}) for args in draws]


def test_there_are_rows():
    assert len(LAWS) >= 4
    assert len({law.name for law in LAWS}) == len(LAWS)
    assert all(law.impls for law in LAWS)

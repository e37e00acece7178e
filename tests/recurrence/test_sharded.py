"""A time axis spread over devices gives what one device gives: values, last state, gradients, borders of documents."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels_pallas import gla
from paperlab.recurrence import linear_scan
from paperlab.recurrence.sharded import sharded_gla, sharded_linear_scan
from tests.recurrence.laws import close

IDS = jnp.array([[1] * 9 + [2] * 7 + [1] * 16, [5] * 20 + [6] * 12])
ON_ITS_BORDERS = jnp.repeat(jnp.arange(8), 4)[None].repeat(2, 0)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "time"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def weighed(tree):
    return sum((x * jnp.cos(jnp.arange(x.size).reshape(x.shape))).sum() for x in jax.tree.leaves(tree))


def value_and_gradients(function, *arrays):
    def value(*arrays):
        found = function(*arrays)
        return weighed(found), found

    return jax.jit(jax.value_and_grad(value, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)


def spread(mesh, x):
    return jax.device_put(x, NamedSharding(mesh, P("data", "time") if x.ndim > 2 and x.shape[1] == 32 else P()))


@pytest.mark.parametrize("ids", [None, IDS, ON_ITS_BORDERS], ids=["one", "packed", "cut-at-devices"])
@pytest.mark.parametrize("reverse", [False, True])
def test_linear_equals_local_with_gradients(mesh, ids, reverse):
    ka, kb, kh = jax.random.split(jax.random.key(0), 3)
    a, b = jax.random.uniform(ka, (2, 32, 3)), jax.random.normal(kb, (2, 32, 3))
    h0 = jax.random.normal(kh, (2, 3))
    options = {"reverse": reverse, "segment_ids": ids}
    want = value_and_gradients(lambda *x: linear_scan(*x, **options), a, b, h0)
    arrays = [spread(mesh, x) for x in (a, b, h0)]
    got = value_and_gradients(lambda *x: sharded_linear_scan(*x, mesh=mesh, mesh_axis="time", **options), *arrays)
    close(got, want, 2e-5)
    assert got[0][1][0].sharding.spec[1] == "time"


def test_a_decay_that_never_changes_stays_whole(mesh):
    a, b = jnp.array([0.9, 0.5, -0.3]), jax.random.normal(jax.random.key(1), (2, 32, 3))
    want = value_and_gradients(linear_scan, a, b)
    got = value_and_gradients(lambda *x: sharded_linear_scan(*x, mesh=mesh, mesh_axis="time"), a, spread(mesh, b))
    close(got, want, 2e-5)
    assert got[1][0].shape == (3,)


@pytest.mark.parametrize(
    ("ids", "heads"), [(None, 2), (IDS, 4), (ON_ITS_BORDERS, 2)], ids=["one", "packed", "cut-at-devices"]
)
def test_gla_equals_local_with_gradients(mesh, ids, heads):
    kq, kk, kv, kg, ks = jax.random.split(jax.random.key(2), 5)
    q, k, v = (jax.random.normal(key, (2, 32, h, d)) for key, h, d in ((kq, heads, 4), (kk, 2, 4), (kv, 2, 6)))
    log_alpha = -jax.random.uniform(kg, (2, 32, 2, 4))
    state = jax.random.normal(ks, (2, heads, 4, 6))

    def local(q, k, v, g, s):
        return gla(q, k, v, g, initial_state=s, segment_ids=ids)

    def over_devices(q, k, v, g, s):
        return sharded_gla(q, k, v, g, mesh=mesh, mesh_axis="time", initial_state=s, segment_ids=ids)

    want = value_and_gradients(local, q, k, v, log_alpha, state)
    got = value_and_gradients(over_devices, *(spread(mesh, x) for x in (q, k, v, log_alpha)), state)
    close(got, want, 5e-5)
    assert got[0][1][0].shape == (2, 32, heads, 6)


def test_only_summaries_travel(mesh):
    """No collective moves anything as long as the sequence."""
    b = jax.ShapeDtypeStruct((2, 4096, 3), jnp.float32, sharding=NamedSharding(mesh, P(None, "time")))
    run = jax.jit(lambda a, b: sharded_linear_scan(a, b, mesh=mesh, mesh_axis="time"))
    text = run.lower(b, b).compile().as_text()
    moved = [line for line in text.splitlines() if "all-gather(" in line or "all-to-all(" in line or "permute(" in line]
    assert moved
    assert not any("1024" in line or "4096" in line for line in moved)


def test_bad_lengths_and_axes_are_named(mesh):
    b = jnp.ones((2, 30, 3))
    with pytest.raises(ValueError, match="30 steps"):
        sharded_linear_scan(b, b, mesh=mesh, mesh_axis="time")
    with pytest.raises(ValueError, match="'sequence'"):
        sharded_linear_scan(b, b, mesh=mesh, mesh_axis="sequence")

"""Folds against the monoids that everyone knows, against each other, and the learnt operator against known answers."""

from functools import partial, reduce
from math import ceil, log2

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperlab.recurrence.fold import Operator, associativity_loss, left_fold, symmetrised, tree_fold
from tests.golden.folder import FOLDER, needs_known_answers
from tests.recurrence.test_structure import loops

BIG = 1e9


def two_smallest(left, right):
    """On pairs (smallest, second smallest): the monoid behind the second minimum."""
    both = jnp.sort(jnp.concatenate([left, right], -1), -1)
    return both[..., :2]


def then(left, right):
    """Affine maps, one after the other: associative, not commutative."""
    (a1, b1), (a2, b2) = left, right
    return a1 * a2, a2 * b1 + b2


MONOIDS = {
    "max": Operator(jnp.maximum, "exactly", -jnp.inf),
    "sum": Operator(jnp.add, "exactly", 0.0),
    "logsumexp": Operator(jnp.logaddexp, "exactly", -jnp.inf),
    "second minimum": Operator(two_smallest, "exactly", jnp.array([BIG, BIG])),
}


def drawn(name, B, N, seed=0):
    x = jax.random.normal(jax.random.key(seed), (B, N))
    return jnp.stack([x, jnp.full_like(x, BIG)], -1) if name == "second minimum" else x


@pytest.mark.parametrize("name", MONOIDS)
@pytest.mark.parametrize("N", [1, 2, 3, 5, 8, 13, 33])
def test_tree_equals_left_and_any_order(name, N):
    x = drawn(name, 2, N)
    tree = tree_fold(MONOIDS[name], x)
    np.testing.assert_allclose(tree, left_fold(MONOIDS[name], x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tree, tree_fold(MONOIDS[name], x[:, ::-1]), rtol=1e-5, atol=1e-6)
    if name == "second minimum" and N > 1:
        np.testing.assert_array_equal(tree[:, 1], np.sort(np.asarray(x[..., 0]), 1)[:, 1])


def test_a_monoid_that_is_not_commutative_keeps_the_order():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 11))
    operator = Operator(then, "exactly")
    tree = tree_fold(operator, (a, b))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), tree, left_fold(operator, (a, b)))
    assert not np.allclose(tree[1], tree_fold(operator, (a[:, ::-1], b[:, ::-1]))[1])


def odd_one(x, y):
    """Neither associative nor commutative, so that the shape of every tree shows; for jax and numpy."""
    return (x - 0.7 * y + 0.3) / (1 + x * x)


def by_hand(x):
    """(fold, terms of the associativity loss) of a list of numbers, by the words of the paper."""
    level, terms = [(v, None) for v in x], []
    while len(level) > 1:
        up = []
        for (u, halves), (v, others) in zip(level[::2], level[1::2], strict=False):
            if halves and others:
                terms += [(*halves, others[0]), (halves[1], *others)]
            elif halves:
                terms += [(*halves, v)]
            up.append((odd_one(u, v), (u, v)))
        level = up + level[2 * len(up) :]
    gaps = [odd_one(odd_one(p, q), r) - odd_one(p, odd_one(q, r)) for p, q, r in terms]
    return level[0][0], sum(gap**2 for gap in gaps), len(terms)


N = 13
OPERATOR = Operator(odd_one, "approximately", 5.0)
EVERYTHING = jax.jit(
    lambda x, mask: (
        tree_fold(OPERATOR, x, mask),
        left_fold(OPERATOR, x, mask),
        associativity_loss(OPERATOR, x, mask),
        jax.grad(lambda x: tree_fold(OPERATOR, x, mask).sum() + associativity_loss(OPERATOR, x, mask)[0].sum())(x),
    )
)


@given(st.lists(st.integers(0, N), min_size=5, max_size=5), st.integers(0, 100))
def test_a_masked_batch_equals_each_set_alone(sizes, seed):
    """With NaN as padding, and sets without elements."""
    x = np.random.default_rng(seed).normal(size=(5, N)).astype(np.float32)
    mask = np.arange(N) < np.array(sizes)[:, None]
    tree, left, (total, count), gradient = EVERYTHING(np.where(mask, x, np.nan), mask)
    assert not np.isnan(gradient).any()
    assert not np.asarray(gradient)[~mask].any()
    for i, n in enumerate(sizes):
        want, loss, terms = by_hand(x[i, :n]) if n else (5.0, 0.0, 0)
        np.testing.assert_allclose(tree[i], want, rtol=1e-4)
        np.testing.assert_allclose(left[i], reduce(odd_one, x[i, :n]) if n else 5.0, rtol=1e-4)
        np.testing.assert_allclose(total[i], loss, rtol=1e-3, atol=1e-6)
        assert count[i] == terms


def test_what_is_not_declared_associative_is_refused():
    x = jnp.ones((1, 4))
    with pytest.raises(ValueError, match="declared associative"):
        tree_fold(Operator(jnp.subtract), x)
    with pytest.raises(ValueError, match="declared associative"):
        associativity_loss(Operator(jnp.subtract), x)
    assert left_fold(Operator(jnp.subtract), x) == -2
    with pytest.raises(ValueError, match="empty set"):
        tree_fold(Operator(jnp.add, "exactly"), x[:, :0])
    with pytest.raises(ValueError, match="mask"):
        tree_fold(MONOIDS["sum"], x, jnp.ones((1, 3), bool))
    assert tree_fold(MONOIDS["sum"], x[:, :0]) == 0


@pytest.mark.parametrize("N", [1, 2, 3, 4, 7, 8, 9, 1024])
def test_levels_and_calls(N):
    """ceil(log2 N) calls of the operator and no loop in the tree; N - 1 dependent ones from the left."""
    calls = []

    def add(x, y):
        calls.append(x.shape[1] if x.ndim > 1 else 1)
        return x + y

    operator = Operator(add, "exactly")
    jaxpr = jax.make_jaxpr(partial(tree_fold, operator))(jnp.ones((2, N)))
    assert len(calls) == (ceil(log2(N)) if N > 1 else 0)
    assert sum(calls) == N - 1
    assert list(loops(jaxpr.jaxpr)) == []
    assert list(loops(jax.make_jaxpr(partial(left_fold, operator))(jnp.ones((2, N))).jaxpr)) == [N - 1]


def test_exact_monoids_have_no_associativity_loss():
    for name, operator in MONOIDS.items():
        total, count = associativity_loss(operator, drawn(name, 2, 13))
        np.testing.assert_allclose(total, 0, atol=1e-9)
        assert count.tolist() == [11, 11]
    assert [int(associativity_loss(MONOIDS["sum"], jnp.ones((1, N)))[1][0]) for N in (1, 2, 3, 5, 7, 8)] == [
        0,
        0,
        1,
        3,
        5,
        6,
    ]


def gru(params, u, h):
    """torch's GRU cell, reset after the product; gates r, z, n."""
    i = jnp.split(u @ params["weight_ih"].T + params["bias_ih"], 3, -1)
    s = jnp.split(h @ params["weight_hh"].T + params["bias_hh"], 3, -1)
    r, z = jax.nn.sigmoid(i[0] + s[0]), jax.nn.sigmoid(i[1] + s[1])
    return (1 - z) * jnp.tanh(i[2] + r * s[2]) + z * h


def test_symmetrised_is_commutative_to_the_last_bit():
    key = jax.random.key(0)
    params = {"weight_ih": (18, 6), "weight_hh": (18, 6), "bias_ih": (18,), "bias_hh": (18,)}
    params = {name: jax.random.normal(key, shape) for name, shape in params.items()}
    operator = symmetrised(partial(gru, params))
    a, b = jax.random.normal(jax.random.key(1), (2, 5, 6))
    np.testing.assert_array_equal(operator(a, b), operator(b, a))


@needs_known_answers("lcm")
def test_the_binary_gru_of_the_paper():
    with jax.enable_x64(True), np.load(FOLDER / "lcm" / "binary_gru.npz", allow_pickle=False) as known:
        params = {name: jnp.asarray(known[name]) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        operator = Operator(symmetrised(partial(gru, params)), "approximately")
        recurrent = Operator(lambda h, x: gru(params, x, h))
        for N in (1, 2, 3, 5, 7, 8, 13):
            x = jnp.asarray(known[f"x{N}"])[None]
            np.testing.assert_allclose(tree_fold(operator, x)[0], known[f"tree{N}"], atol=1e-9)
            np.testing.assert_allclose(left_fold(operator, x)[0], known[f"left_fold{N}"], atol=1e-9)
            np.testing.assert_allclose(
                left_fold(recurrent, x, start=jnp.zeros((1, 6)))[0], known[f"gru_fold{N}"], atol=1e-9
            )
            total, count = associativity_loss(operator, x)
            assert int(count[0]) == int(known[f"assoc_tree_terms{N}"])
            mean = total[0] / max(int(count[0]), 1)
            np.testing.assert_allclose(mean, known[f"assoc_tree_loss{N}"], atol=1e-9)

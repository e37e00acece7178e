"""Recurrences on graphs: against paths written out, level by level against edge by edge, pruning, known answers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.recurrence import dag
from tests.golden.folder import FOLDER, needs_known_answers

ROOT = FOLDER / "plstm"


def random_graph(nodes, share, seed):
    rng = np.random.default_rng(seed)
    pairs = [(i, j) for i in range(nodes) for j in range(i + 1, nodes) if rng.random() < share]
    edges = dag.oriented(pairs or [(0, 1)])
    return edges[rng.permutation(len(edges))], rng


def by_paths(T, b, arcs):
    """C_e as the sum over all paths of arcs that end at e, product by product."""
    after = {}
    for number, (earlier, later) in enumerate(arcs):
        after.setdefault(int(earlier), []).append((int(later), number))
    C = np.zeros_like(b)

    def walk(e, value):
        C[e] += value
        for later, number in after.get(e, []):
            walk(later, T[number][..., None] * value)

    for e in range(len(b)):
        walk(e, b[e])
    return C


def paths_between(count, arcs):
    """[e', e]: the number of paths."""
    step = np.zeros((count, count), int)
    step[arcs[:, 0], arcs[:, 1]] = 1
    total, power = np.eye(count, dtype=int), step
    while power.any():
        total, power = total + power, power @ step
    return total


@pytest.mark.parametrize("seed", range(3))
def test_levels_equal_edge_by_edge_equal_every_path(seed):
    with jax.enable_x64(True):
        edges, rng = random_graph(9, 0.4, seed)
        arcs = dag.arcs_of(edges)
        T, b = rng.normal(size=(len(arcs), 2)), rng.normal(size=(len(edges), 2, 3))
        want = by_paths(T, b, arcs)
        plan = dag.schedule(len(edges), arcs)
        for impl in ("levels", "sequential", "hierarchical"):
            got = jax.jit(partial(dag.dag_scan, impl=impl))(T, b, plan, arcs)
            np.testing.assert_allclose(got, want, atol=1e-11 * max(1, np.abs(want).max()))


@pytest.mark.parametrize(("nodes", "share"), [(9, 0.4), (40, 0.15)])
def test_gradients_and_second_gradients_equal_edge_by_edge(nodes, share):
    with jax.enable_x64(True):
        edges, rng = random_graph(nodes, share, 5)
        arcs = dag.arcs_of(edges)
        T, b = 0.3 * rng.normal(size=(len(arcs), 2)), rng.normal(size=(len(edges), 2, 3))
        plan, weight = dag.schedule(len(edges), arcs), rng.normal(size=b.shape)

        def value(T, b, impl):
            return (dag.dag_scan(T, b, plan, arcs, impl=impl) ** 2 * weight).sum()

        grad = jax.jit(jax.grad(value, argnums=(0, 1)), static_argnums=2)
        for impl in ("levels", "hierarchical"):
            jax.tree.map(
                partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), grad(T, b, impl), grad(T, b, "sequential")
            )
        curvature = jax.jit(jax.grad(lambda T, impl: (jax.grad(value)(T, b, impl) ** 2).sum()), static_argnums=1)
        for impl in ("levels", "hierarchical"):
            np.testing.assert_allclose(curvature(T, impl), curvature(T, "sequential"), rtol=1e-8, atol=1e-8)


def test_a_batch_is_a_union_and_padding_changes_nothing():
    parts = [random_graph(nodes, 0.5, nodes)[0] for nodes in (5, 8, 3)]
    graphs = [(int(edges.max()) + 1, edges, dag.arcs_of(edges)) for edges in parts]
    nodes, edges, arcs = dag.union(graphs)
    assert nodes == sum(graph[0] for graph in graphs)
    np.testing.assert_array_equal(np.sort(dag.arcs_of(edges), 0), np.sort(arcs, 0))
    rng = np.random.default_rng(0)
    T, b = rng.normal(size=len(arcs)).astype(np.float32), rng.normal(size=(len(edges), 4)).astype(np.float32)
    whole = dag.dag_scan(T, b, dag.schedule(len(edges), arcs), arcs)
    padded = dag.dag_scan(T, b, dag.schedule(len(edges), arcs, depth=20, width=40, fan=90), arcs)
    np.testing.assert_allclose(padded, whole, rtol=1e-6)
    first_edges, first_arcs = 0, 0
    for _, own, joints in graphs:
        mine, ours = slice(first_edges, first_edges + len(own)), slice(first_arcs, first_arcs + len(joints))
        alone = dag.dag_scan(T[ours], b[mine], dag.schedule(len(own), joints), joints)
        np.testing.assert_allclose(whole[mine], alone, rtol=1e-5, atol=1e-6)
        first_edges, first_arcs = mine.stop, ours.stop


@pytest.mark.parametrize("impl", ["sequential", "levels", "hierarchical"])
def test_padded_arrays_change_nothing_and_have_no_gradient(impl):
    edges, rng = random_graph(8, 0.5, 3)
    arcs = dag.arcs_of(edges)
    E, L, level = len(edges), len(arcs), dag.levels(len(edges), arcs)
    T, b = rng.normal(size=(L + 5, 2)).astype(np.float32), rng.normal(size=(E + 3, 2, 4)).astype(np.float32)
    padded = np.concatenate([arcs, np.full((5, 2), E + 3)])
    room = {"depth": 12, "width": E, "fan": L, "room": (E + 3, L + 5)}
    turned = arcs[:, ::-1]
    plan = dag.Schedule(dag.order(level, arcs, **room), dag.order(dag.levels(E, turned), turned, **room))
    weight = rng.normal(size=(E, 2, 4))

    def value(T, b, plan, arcs):
        C = dag.dag_scan(T, b, plan, arcs, impl=impl)[:E]
        return (C * weight).sum(), C

    plain = dag.schedule(E, arcs)
    (dT, db), C = jax.grad(value, (0, 1), has_aux=True)(T, b, plan, padded)
    (wanted_dT, wanted_db), wanted = jax.grad(value, (0, 1), has_aux=True)(T[:L], b[:E], plain, arcs)
    np.testing.assert_allclose(C, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dT[:L], wanted_dT, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(db[:E], wanted_db, rtol=1e-4, atol=1e-4)
    assert not np.asarray(dT[L:]).any()
    assert not np.asarray(db[E:]).any()


def test_one_program_serves_all_graphs_of_a_size():
    traces = []

    @jax.jit
    def run(T, b, plan, arcs):
        traces.append(1)
        return dag.dag_scan(T, b, plan, arcs)

    for seed in range(3):
        edges, _ = random_graph(7, 0.5, seed)
        edges, room = edges[:8], 30
        arcs = dag.arcs_of(edges)
        arcs = np.concatenate([arcs, np.full((room - len(arcs), 2), len(edges))])  # arcs from nothing to nothing
        plan = dag.schedule(9, arcs[arcs[:, 0] < 8], depth=8, width=9, fan=12)
        found = run(jnp.ones(room), jnp.zeros((9, 2)).at[: len(edges)].set(1), plan, jnp.minimum(jnp.asarray(arcs), 8))
        assert found.shape == (9, 2)
    assert len(traces) == 1


@pytest.mark.parametrize("seed", range(4))
def test_pruning_leaves_at_most_one_path_and_bounds_the_state(seed):
    edges, rng = random_graph(14, 0.35, seed)
    full = dag.arcs_of(edges)
    kept = dag.prune_to_multitree(edges, full)
    paths = paths_between(len(edges), kept)
    assert paths.max() == 1
    assert {tuple(arc) for arc in kept} <= {tuple(arc) for arc in full}
    missing = {tuple(arc) for arc in full} - {tuple(arc) for arc in kept}
    assert all(_closes_a_second_path(paths, *arc) for arc in missing), "what was cut would have made a second path"
    T = rng.uniform(-1, 1, size=len(kept))
    C = dag.dag_scan(T, jnp.ones((len(edges), 1)), dag.schedule(len(edges), kept), kept)
    assert (np.abs(C[:, 0]) <= paths.sum(0) + 1e-5).all()


def _closes_a_second_path(paths, earlier, later):
    return bool(((paths[:, earlier] > 0) & (paths[:, later] > 0)).any())


def test_normalised_columns_bound_the_state():
    """P-mode: where |T| sums to at most one over the arcs that leave an edge, the sum of all states is bounded by path lengths."""
    edges, rng = random_graph(12, 0.4, 0)
    arcs = dag.arcs_of(edges)
    T = rng.normal(size=len(arcs))
    T /= np.bincount(arcs[:, 0], np.abs(T), len(edges))[arcs[:, 0]]
    b = rng.normal(size=(len(edges), 1))
    plan = dag.schedule(len(edges), arcs)
    C = dag.dag_scan(T, jnp.asarray(b), plan, arcs)
    assert np.abs(C).sum() <= np.abs(b).sum() * plan.forward.edges.shape[0] * (1 + 1e-5)


def test_bad_graphs_are_named():
    with pytest.raises(ValueError, match="itself"):
        dag.oriented([(1, 1)])
    with pytest.raises(ValueError, match="cycle"):
        dag.schedule(2, np.array([[0, 1], [1, 0]]))
    with pytest.raises(ValueError, match="depth=1"):
        dag.schedule(2, np.array([[0, 1]]), depth=1)
    plan, arcs = dag.schedule(2, np.array([[0, 1]])), np.array([[0, 1]])
    with pytest.raises(ValueError, match="'fast'"):
        dag.dag_scan(jnp.ones(1), jnp.ones((2, 1)), plan, arcs, impl="fast")
    with pytest.raises(ValueError, match=r"\[L, 2\]"):
        dag.dag_scan(jnp.ones(2), jnp.ones((2, 1)), plan, arcs)
    with pytest.raises(ValueError, match="begin a state"):
        dag.dag_scan(jnp.ones((1, 5)), jnp.ones((2, 3)), plan, arcs)
    assert dag.oriented([(2, 1), (1, 2)]).tolist() == [[1, 2]]


@needs_known_answers("plstm")
@pytest.mark.parametrize("name", ["graph_P_9", "graph_D_9"])
def test_known_graphs(name):
    with jax.enable_x64(True), np.load(ROOT / f"{name}.npz", allow_pickle=False) as file:
        known = dict(file)
        edges, arcs = known["edges"], known["line_edges"]
        full = known["line_edges_full"]
        assert {tuple(a) for a in dag.arcs_of(edges)} == {tuple(a) for a in full}
        if "_D_" in name:
            assert {tuple(a) for a in dag.prune_to_multitree(edges, full)} == {tuple(a) for a in arcs}
        plan = dag.schedule(len(edges), arcs)
        names = ("query", "key", "value", "source", "transition", "mark", "direct")

        def outputs(query, key, value, source, transition, mark, direct):
            tails, heads = edges.T
            written = source.T[..., None, None] * jnp.einsum("hek,hev->ehkv", key[:, tails], value[:, tails])
            C = dag.dag_scan(transition.T, written, plan, arcs)
            seen = jnp.einsum("nhkv,hnk->hnv", dag.read(C, mark.T, heads, query.shape[1]), query)
            return seen + direct[..., None] * (query * key).sum(-1, keepdims=True) * value

        out, vjp = jax.vjp(outputs, *(jnp.asarray(known[n]) for n in names))
        np.testing.assert_allclose(out, known["out"], atol=1e-12)
        for name, gradient in zip(names, vjp(jnp.asarray(known["w"])), strict=True):
            np.testing.assert_allclose(gradient, known[f"grad_{name}"], atol=1e-12)

"""pLSTM on graphs: batches, directions, gates at the right ends, stability, and what only a path can tell."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import resolve
from paperlab.data import graphs, wiring
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.evidence import Laboratory
from paperlab.papers.plstm import gnn, graph_claims, graph_folds, graph_model, graph_recipes
from paperlab.papers.plstm.graph import GraphLayer, Wiring, graph_memory, p_mode, stabilised
from paperlab.papers.plstm.graph_pooling import POOLINGS
from paperlab.recurrence import dag
from paperlab.recurrence.grid import Gates, grid_memory
from paperlab.training.writers import JsonLines
from tests.data.test_graphs import write_set
from tests.recurrence.laws import QUICK

FEATURES = graphs.Features(nodes=4, edges=3, classes=2, slots=7)
WIDTH = 8


def random_graph(nodes, seed, share=0.5):
    rng = np.random.default_rng(seed)
    pairs = np.argwhere(np.triu(rng.random((nodes, nodes)) < share, 1))
    beside = rng.normal(size=(len(pairs), FEATURES.edges)).astype(np.float32)
    return wiring.prepared(rng.normal(size=(nodes, FEATURES.nodes)).astype(np.float32), pairs, beside, int(seed % 2))


ROOM = wiring.Sizes(nodes=26, edges=48, arcs=70, depth=8, width=30, fan=40, graphs=3, slots=FEATURES.slots)


def batch_of(*rows):
    """Two unions of these lists of graphs, of one size whatever they hold: one compiled program serves them all."""
    unions = [wiring.union(list(row), ROOM, FEATURES[:2]) for row in (*rows, [])[:2]]
    return {name: np.stack([one[name] for one in unions]) for name in unions[0]}


def model_of(**changes):
    options = {"width": WIDTH, "heads": 2, "edge_width": 4, "gate_bias": -1.0, "transition_std": 1.0}
    return graph_model.GraphModel(FEATURES, **(options | {"transition_diagonal": 1.0} | changes))


def randomised(shapes, seed=0, scale=0.5):
    """Random numbers for all parameters: weights that start at zero would hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def ready(model, seed=0):
    """Parameters of a model, and the model as a compiled function of (parameters, batch)."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch_of([]))
    return randomised(shapes, seed), jax.jit(model.apply, compiler_options=QUICK)


OTHERWISE = {"gates": "node", "modes": "D", "block": "pre", "pooling": "max", "degree_encoding": False}


@pytest.mark.parametrize("changes", [{}, {**OTHERWISE, "directions": "forward"}], ids=["usual", "otherwise"])
def test_a_graph_in_a_batch_is_as_it_is_alone(changes):
    assert_independent_of_its_batch(model_of(**changes))


@pytest.mark.parametrize("kind", gnn.KINDS)
def test_a_network_s_answer_for_a_graph_does_not_depend_on_its_batch(kind):
    assert_independent_of_its_batch(gnn.GNN(FEATURES, kind, width=WIDTH, depth=1, heads=2))


def assert_independent_of_its_batch(model):
    params, run = ready(model)
    parts = [random_graph(nodes, seed) for seed, nodes in enumerate((5, 6, 1, 6))]
    together = run(params, batch_of(parts[:3], parts[3:]))
    alone = [run(params, batch_of([graph]))[0, 0] for graph in parts]
    np.testing.assert_allclose([*together[0], together[1, 0]], alone, atol=2e-5)
    assert np.ptp(np.asarray(alone), 0).min() > 1e-3, "graphs must differ for this to say anything"


@pytest.mark.parametrize("mode", ["P", "D"])
def test_the_graph_turned_round_is_the_graph_with_its_nodes_numbered_backwards(mode):
    graph = random_graph(7, 3)
    mirrored = wiring.prepared(graph.nodes[::-1], 6 - graph.edges, graph.beside, graph.label)
    layer = GraphLayer(WIDTH, 2, mode)
    x = np.random.default_rng(0).normal(size=(2, ROOM.nodes, WIDTH)).astype(np.float32)
    ways = [graph_model.wiring(batch_of([one]), mode, turn) for one in (graph, mirrored) for turn in (False, True)]
    params = randomised(jax.eval_shape(layer.init, jax.random.key(1), x, None, ways[0]))
    run = jax.jit(layer.apply, compiler_options=QUICK)
    backwards = np.concatenate([x[:, :7][:, ::-1], x[:, 7:]], 1)
    turned, forward = run(params, x, None, ways[1])[0, :7], run(params, backwards, None, ways[2])[0, :7]
    np.testing.assert_allclose(turned, forward[::-1], atol=1e-5)
    assert np.abs(run(params, x, None, ways[0])[0, :7] - turned).max() > 1e-3


def test_poolings_by_hand():
    x = np.array([[[1.0], [3.0], [-5.0], [7.0]]])
    graph = np.array([[0, 0, 2, 3]])  # three places, the second empty; the last node is padding
    pooled = {name: np.asarray(pool(x, graph, 3))[0, :, 0].tolist() for name, pool in POOLINGS.items()}
    assert pooled == {"mean": [2, 0, -5], "sum": [4, 0, -5], "max": [3, 0, -5]}


def test_every_order_of_evaluation_gives_the_same_answer():
    batch = batch_of([random_graph(6, 1), random_graph(4, 2)])
    models = [model_of(impl=impl, modes="P", double_blocks=1) for impl in ("levels", "hierarchical")]
    levels, hierarchical = (run(params, batch) for params, run in map(ready, models))
    np.testing.assert_allclose(hierarchical, levels, atol=1e-5)


def test_a_grid_as_a_graph_is_the_grid():
    """Claim 1: the recurrence on the grid's own graph is the 2D core without its scale."""
    X, Y, DK, DV = 3, 4, 3, 2
    rng = np.random.default_rng(0)
    node = lambda x, y: x * Y + y  # noqa: E731
    right = [(node(x, y), node(x + 1, y)) for x in range(X - 1) for y in range(Y)]
    down = [(node(x, y), node(x, y + 1)) for x in range(X) for y in range(Y - 1)]
    edges = np.array(right + down)
    is_down = np.arange(len(edges)) >= len(right)
    arcs = dag.arcs_of(edges)
    gates = {name: rng.normal(size=(X * Y,)) for name in ("sr", "sd", "rl", "du", "dl", "ru", "ml", "mu", "direct")}
    q, k, v = (rng.normal(size=(X * Y, d)) for d in (DK, DK, DV))
    source = np.where(is_down, gates["sd"][edges[:, 0]], gates["sr"][edges[:, 0]])
    mark = np.where(is_down, gates["mu"][edges[:, 1]], gates["ml"][edges[:, 1]])
    turn = [["rl", "dl"], ["ru", "du"]]
    T = np.array([gates[turn[int(is_down[a])][int(is_down[b])]][edges[a, 1]] for a, b in arcs])
    with jax.enable_x64(True):
        plan = Wiring(*jnp.asarray(edges).T, *jnp.zeros((2, len(edges)), int), arcs, dag.schedule(len(edges), arcs))
        heads = [a[:, None] for a in (q, k, v, source, T, mark, gates["direct"])]
        run = jax.jit(graph_memory, compiler_options=QUICK)
        got = run(*map(jnp.asarray, heads), plan)[:, 0].reshape(X, Y, DV)
        shape = {name: jnp.asarray(gates[name].reshape(X, Y)) for name in gates}
        core = Gates(
            source_r=shape["sr"][..., None, None, None],
            source_d=shape["sd"][..., None, None, None],
            mark_l=shape["ml"][..., None, None, None],
            mark_u=shape["mu"][..., None, None, None],
            **{name: shape[name][..., None, None] for name in ("rl", "ru", "dl", "du")},
        )
        arrays = [jnp.asarray(a.reshape(X, Y, -1, 1)) for a in (q, k, v)]
        direct = shape["direct"][..., None, None, None, None]
        grid = jax.jit(partial(grid_memory, scale=1.0, impl="nodes"), compiler_options=QUICK)
        want = grid(*arrays, core, direct)[0][..., 0]
    np.testing.assert_allclose(got, want, atol=1e-12)


def diamond():
    """0 -> 1 -> 3, 0 -> 2 -> 3, 3 -> 4: node 3 has two edges that enter and one that leaves."""
    edges = np.array([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)])
    return wiring.prepared(
        np.ones((5, FEATURES.nodes), np.float32), edges, np.zeros((5, FEATURES.edges), np.float32), 0
    )


def test_gates_are_read_at_the_ends_that_own_them():
    """A change at one node moves the transitions of the arcs through it alone; sources belong to tails, marks to heads."""
    batch = batch_of([diamond()])
    way = graph_model.wiring(batch, "P", False)
    real = int((np.asarray(way.arcs[0, :, 0]) < way.tails.shape[1]).sum())
    ends = np.asarray(batch["heads"][0])[np.asarray(way.arcs[0, :real, 0])]
    for gates in ("edge", "node"):
        layer = GraphLayer(WIDTH, 2, "P", gates=gates, slots=3)
        x = jnp.ones((2, ROOM.nodes, WIDTH))
        params = randomised(jax.eval_shape(layer.init, jax.random.key(0), x, None, way))
        method = layer._of_edges if gates == "edge" else layer._of_nodes
        read = jax.jit(partial(layer.apply, params, method=method), compiler_options=QUICK)
        before = read(x, None, way)
        for node in range(5):
            changed = [
                np.abs(a - b).max(-1)[0] > 1e-6
                for a, b in zip(before, read(x.at[0, node].add(1.0), None, way), strict=True)
            ]
            source, transition, mark = changed
            np.testing.assert_array_equal(source[:5], batch["tails"][0][:5] == node)
            np.testing.assert_array_equal(mark[:5], batch["heads"][0][:5] == node)
            np.testing.assert_array_equal(transition[:real], ends == node)


def test_node_wise_gates_give_every_edge_of_a_node_a_number_of_its_own():
    batch = batch_of([diamond()])
    way = graph_model.wiring(batch, "P", False)
    layer = GraphLayer(WIDTH, 1, "P", gates="node", slots=3)
    x = jnp.zeros((2, ROOM.nodes, WIDTH))
    params = randomised(jax.eval_shape(layer.init, jax.random.key(0), x, None, way))["params"]
    params["source"]["bias"] = jnp.arange(3.0)[:, None]
    params["mark"]["bias"] = 10 + jnp.arange(3.0)[:, None]
    params["transition"]["bias"] = jnp.arange(9.0).reshape(3, 3, 1)
    source, transition, mark = layer.apply({"params": params}, x, None, way, method=layer._of_nodes)
    assert source[0, :5, 0].tolist() == [0, 1, 0, 0, 0]  # the second edge that leaves node 0 has place 1
    assert mark[0, :5, 0].tolist() == [10, 10, 10, 11, 10]  # the second edge that enters node 3
    edges = np.stack([batch["tails"][0], batch["heads"][0]], 1)
    seen = {
        tuple(map(tuple, edges[arc])): float(t) for arc, t in zip(way.arcs[0][:4], transition[0, :4, 0], strict=True)
    }
    assert seen[((2, 3), (3, 4))] == 3.0  # from place 1 to place 0
    assert seen[((1, 3), (3, 4))] == 0.0


def test_where_the_gates_start():
    layer = GraphLayer(WIDTH, 2, gates="node", slots=2)
    way = graph_model.wiring(batch_of([random_graph(3, 0, 1.0)]), "P", False)
    init = jax.jit(layer.init, compiler_options=QUICK)
    params = init(jax.random.key(0), jnp.zeros((2, ROOM.nodes, WIDTH)), None, way)["params"]
    for name in ("source", "mark", "direct"):
        assert (params[name]["bias"] == -5).all()
        assert not params[name]["kernel"].any()
    np.testing.assert_array_equal(params["transition"]["bias"][..., 1], 10 * np.eye(2))


@pytest.mark.parametrize("mode", ["P", "D"])
def test_the_modes_keep_what_leaves_an_edge_below_one(mode):
    graph = random_graph(9, 5)
    arcs = graph.arcs[0 if mode == "P" else 1]
    t = 4 * jax.random.normal(jax.random.key(0), (len(arcs), 2))
    T = np.asarray(jax.jit(stabilised, static_argnums=(2, 3))(t, jnp.asarray(arcs), len(graph.edges), mode))
    if mode == "D":
        np.testing.assert_allclose(T, np.tanh(t), rtol=1e-6)
        assert graph_claims.number_of_paths(len(graph.edges), arcs).max() == 1
        return
    total = np.zeros((len(graph.edges), 2))
    np.add.at(total, arcs[:, 0], np.abs(t))
    np.testing.assert_allclose(T, t / (0.5 + total[arcs[:, 0]]), rtol=1e-5)
    left = np.zeros_like(total)
    np.add.at(left, arcs[:, 0], np.abs(T))
    assert left.max() < 1


def test_padding_has_no_part_in_p_mode():
    arcs = np.array([[0, 1], [0, 2], [9, 9]])
    T = p_mode(jnp.ones((3, 1)), jnp.asarray(arcs), 3)
    np.testing.assert_allclose(T[:2], 1 / 2.5)


def swapped_chains(length, seed=0):
    """Two chains and the same with their last ends exchanged; the inner nodes of both are alike, so only paths differ."""
    inner = np.random.default_rng(seed).integers(2, size=length - 2)
    found = []
    for ends in ([(2, 2), (3, 3)], [(2, 3), (3, 2)]):
        kinds = np.concatenate([[a, *inner, b] for a, b in ends])
        edges = np.concatenate([np.stack([np.arange(length - 1), np.arange(1, length)], 1) + at for at in (0, length)])
        found.append(
            wiring.prepared(np.eye(4, dtype=np.float32)[kinds], edges, np.zeros((len(edges), 3), np.float32), 0)
        )
    return found


def test_only_paths_tell_chains_apart():
    pair = swapped_chains(6)
    network = gnn.GNN(FEATURES, "gin", width=WIDTH, depth=2)
    params, run = ready(network)
    same = run(params, batch_of(pair))[0]
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    params, run = ready(model_of(modes="D", double_blocks=1))
    other = run(params, batch_of(pair))[0]
    assert np.abs(other[0] - other[1]).max() > 1e-4


def test_dropout_acts_in_training_alone():
    model = gnn.GNN(FEATURES, "gcn", width=WIDTH, depth=1, dropout=0.5)
    (params, _), batch = ready(model), batch_of([random_graph(5, 1)])
    train = jax.jit(lambda key: model.apply(params, batch, rngs={"dropout": key}), compiler_options=QUICK)
    one, other, again = (train(jax.random.key(seed)) for seed in (0, 1, 0))
    assert np.abs(one - other).max() > 0
    np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize("name", graph_recipes.TU)
def test_the_paper_s_recipe(name):
    config = resolve(graph_recipes.full_tu(name))
    task = find("tasks", config.task.name).make(config)
    spec = task.batch_spec()
    params, _ = jax.eval_shape(task.init, jax.random.key(0), spec)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 200_000 < count < 300_000
    assert config.train.steps == 100 * -(
        -round(0.8 * {"MUTAG": 188, "NCI1": 4110, "PROTEINS": 1113, "PTC_FM": 349}[name]) // 64
    )
    assert (config.model.width, config.model.double_blocks, config.model.modes) == (96, 2, "PD")
    assert (config.optim.lr, config.optim.warmup, config.optim.schedule) == (1e-3, 0.05, "cosine")


def test_a_fold_is_tested_at_its_best_validation_epoch():
    rows = {1: (0.5, 0.9, 0.1), 2: (0.75, 0.6, 0.2), 3: (0.75, 0.5, 0.3), 4: (0.75, 0.5, 0.4), 5: (0.6, 0.1, 0.9)}
    names = ("validation_accuracy", "validation_loss", "test_accuracy")
    assert graph_folds.best_step({step: dict(zip(names, row, strict=True)) for step, row in rows.items()}) == 3


def test_all_folds_are_tested_and_none_twice(tmp_path, monkeypatch):
    done = []

    def one_fold(config, fold):
        done.append(fold)
        return {"test_accuracy": fold / 10, "epoch": 1.0}

    monkeypatch.setattr(graph_folds, "one_fold", one_fold)
    config = graph_recipes.full_tu_folds("MUTAG")
    for _ in range(2):
        with JsonLines(tmp_path / "metrics.jsonl") as writer:
            summary = graph_folds.program(config, tmp_path, writer)
        assert done == list(range(10))
        assert summary["test_accuracy"] == pytest.approx(0.45)


def test_a_fold_of_local_files_is_trained(tmp_path):
    config = graph_recipes.full_tu_network("gcn", depth=1, name="MUTAG")
    config.model.width = 8
    config.data.update(path=str(write_set(tmp_path / "TOY", count=12)), folds=3, batch_size=4, rows=1)
    config.train.steps = 2
    scores = graph_folds.one_fold(resolve(config), 1)
    assert 0 <= scores["test_accuracy"] <= 1
    assert scores["epoch"] in (1.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"modes": "PX"}, "config.model.modes='PX'"),
        ({"modes": ""}, "config.model.modes"),
        ({"heads": 5}, "must divide config.model.width=96"),
        ({"pooling": "median"}, "config.model.pooling"),
        ({"directions": "both"}, "config.model.directions"),
        ({"impl": "fast"}, "config.model.impl"),
    ],
    ids=str,
)
def test_options_that_no_run_can_use(changes, told):
    config = graph_recipes.full_tu()
    config.model.update(changes)
    with pytest.raises(ConfigError, match=told):
        resolve(config)


def test_heads_of_an_attention_network_divide_its_width():
    config = graph_recipes.full_tu_network("gat")
    config.model.heads = 3
    with pytest.raises(ConfigError, match=r"config.model.heads=3"):
        resolve(config)


def test_the_bounds_of_claim_5_hold_and_are_needed(tmp_path):
    lab = Laboratory(tmp_path)
    for claim in graph_claims.CLAIMS:
        if claim.id in ("5.multitree", "5.d_bound"):
            outcome = claim.run(lab)
            assert claim.threshold.holds(outcome.value, outcome.baseline)
            assert outcome.baseline is not None
            assert not claim.threshold.holds(outcome.baseline, None), "without what the claim is about it would fail"


def test_the_two_references_of_claim_5_agree():
    edges = graph_claims.random_graph(7, 1)
    arcs = dag.arcs_of(edges)
    x = graph_claims.random_inputs(7, edges, arcs, 1)
    np.testing.assert_allclose(
        graph_claims.node_loop(x, edges, arcs), graph_claims.path_sum(x, edges, arcs), atol=1e-12
    )
    one_way = {name: a.copy() for name, a in x.items()}
    one_way["transition"][0] += 1
    assert (
        len(arcs) == 0
        or np.abs(graph_claims.node_loop(one_way, edges, arcs) - graph_claims.node_loop(x, edges, arcs)).max() > 0
    )

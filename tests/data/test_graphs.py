"""Graphs as batches: unions of a fixed size, each graph once an epoch, folds of local files, and what the files may not be."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from paperlab.config import base_config
from paperlab.data import graphs, tudataset, wiring
from paperlab.data.synthetic.chains import chains
from paperlab.errors import ConfigError
from paperlab.recurrence import dag


def section(**changes):
    return ConfigDict({**graphs.DEFAULTS, "train_graphs": 21, "test_graphs": 5, **changes})


def small(count, seed=0, features=2):
    """Random graphs of different sizes, one without an edge."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        nodes = int(rng.integers(1, 9)) if number else 3
        pairs = np.argwhere(np.triu(rng.random((nodes, nodes)) < 0.5, 1)) if number else np.zeros((0, 2), int)
        beside = rng.normal(size=(len(pairs), 3)).astype(np.float32)
        made.append(
            wiring.prepared(rng.normal(size=(nodes, features)).astype(np.float32), pairs, beside, int(rng.integers(2)))
        )
    return made


@pytest.mark.parametrize(("count", "places", "rows"), [(21, 4, 1), (21, 4, 2), (5, 8, 4), (16, 4, 4)])
def test_no_batch_is_larger_than_said_and_every_graph_comes_once_an_epoch(count, places, rows):
    some = small(count)
    groups = wiring.strata(some, places)
    room = wiring.sizes(some, groups, rows)
    batches = max(map(len, groups))
    for epoch in range(2):
        seen = []
        for index in range(batches):
            chosen = wiring.batch_of(groups, epoch * batches + index, seed=1)
            assert len(chosen) == places
            for row in range(rows):  # raises where a union exceeds its room
                wiring.union([some[g] if g >= 0 else None for g in chosen[row::rows]], room, (2, 3))
            seen += [g for g in chosen if g >= 0]
        assert sorted(seen) == list(range(count))
    in_order = [wiring.batch_of(groups, index, None) for index in range(batches)]
    assert sorted(g for chosen in in_order for g in chosen if g >= 0) == list(range(count))
    shuffled = [wiring.batch_of(groups, index, 1) for index in range(2 * batches)]
    assert batches < 4 or shuffled[:batches] != shuffled[batches:], "every epoch has an order of its own"


def test_a_union_holds_each_graph_as_it_is_alone():
    some = small(6)
    room = wiring.sizes(some, wiring.strata(some, 6), 1)
    row = wiring.union([some[0], None, *some[1:]], room._replace(graphs=7), (2, 3))
    assert row["weights"].tolist() == [1, 0, 1, 1, 1, 1, 1]
    nodes = edges = 0
    for place, graph in zip((0, 2, 3, 4, 5, 6), some, strict=True):
        mine, ours = slice(nodes, nodes + len(graph.nodes)), slice(edges, edges + len(graph.edges))
        np.testing.assert_array_equal(row["nodes"][mine], graph.nodes)
        assert (row["graph"][mine] == place).all()
        np.testing.assert_array_equal(row["degree"][mine], wiring.degrees(graph.edges, len(graph.nodes)))
        np.testing.assert_array_equal(np.stack([row["tails"], row["heads"]], 1)[ours] - nodes, graph.edges)
        np.testing.assert_array_equal(row["beside"][ours], graph.beside)
        assert row["labels"][place] == graph.label
        nodes, edges = mine.stop, ours.stop
    assert (row["graph"][nodes:] == 7).all()
    assert (row["tails"][edges:] == room.nodes).all()
    for kind in range(3):
        known = row["arcs"][kind][row["arcs"][kind][:, 0] < room.edges]
        assert len(known) == sum(len(graph.arcs[kind]) for graph in some)
        joints = row["heads"][known[:, 0]] == row["tails"][known[:, 1]]
        assert (joints if kind < 2 else row["tails"][known[:, 0]] == row["heads"][known[:, 1]]).all()


def test_the_orders_of_a_union_are_those_of_its_graph_as_a_whole():
    some = small(5, seed=3)
    room = wiring.sizes(some, wiring.strata(some, 5), 1)
    row = wiring.union(some, room, (2, 3))
    for kind in range(3):
        known = row["arcs"][kind][row["arcs"][kind][:, 0] < room.edges]
        for way in range(2):
            directed = known[:, :: -1 if way else 1]
            level = dag.levels(room.edges, directed)
            found = {int(e): d for d, edges in enumerate(row["order_edges"][kind, way]) for e in edges}
            real = np.flatnonzero(row["tails"] < room.nodes)
            assert [found[e] for e in real] == level[real].tolist()
            taken = row["order_arc"][kind, way]
            assert sorted(taken[taken < room.arcs].tolist()) == list(range(len(known)))


def test_places_number_the_edges_of_a_node():
    assert wiring.places_among(np.array([0, 2, 0, 1, 2, 0])).tolist() == [0, 0, 1, 0, 1, 2]


def test_chains_have_balanced_ends_and_labels_that_their_paths_tell():
    for index in range(40):
        nodes, edges, label = chains(index, count=4, shortest=3, longest=7, twigs=0.4)
        kinds = nodes.argmax(1)
        assert (kinds == 2).sum() == (kinds == 3).sum() == 4
        component = np.arange(len(nodes))
        for _ in range(len(nodes)):
            for a, b in edges:
                component[a] = component[b] = min(component[a], component[b])
        ends = [sorted(kinds[(component == c) & (kinds >= 2)]) for c in np.unique(component)]
        assert len(ends) == 4
        assert all((pair[0] == pair[1]) == bool(label) for pair in ends)
    assert {chains(i)[2] for i in range(20)} == {0, 1}
    assert not np.array_equal(chains(0, split=0)[0], chains(0, split=1)[0])


def test_along_a_chain_numbers_rise():
    nodes, edges, _ = chains(5, twigs=0.0)
    graph = wiring.prepared(nodes, edges, np.zeros((len(edges), 0), np.float32), 0)
    assert graph.levels[0].max() + 1 == max(np.bincount(_component(edges, len(nodes)))) - 1


def _component(edges, count):
    component = np.arange(count)
    for _ in range(count):
        for a, b in edges:
            component[a] = component[b] = min(component[a], component[b])
    return component


def test_batches_are_split_over_processes_and_do_not_depend_on_their_number():
    data = graphs.open_graphs(section(batch_size=8), rows=4)
    whole = data.batches("train")[3]
    parts = [data.batches("train", process, 2)[3] for process in range(2)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    same = graphs.open_graphs(section(batch_size=8), rows=1).batches("train")[3]
    assert sorted(same["labels"].reshape(-1)) == sorted(whole["labels"].reshape(-1))
    assert len(data.batches("extrapolation")) == 1
    shapes = graphs.batch_shapes(4, data.sizes["train"], data.features)
    assert {name: (a.shape, a.dtype) for name, a in whole.items()} == shapes


def write_set(folder, count=12, **files):
    """A small TUDataset: triangles (class 1) and paths of three nodes (class -1)."""
    pairs, owner, labels = [], [], []
    for g in range(count):
        a, b, c = (3 * g + i for i in (1, 2, 3))
        triangle = g % 2
        pairs += [(a, b), (b, a), (b, c), (c, b), *([(a, c), (c, a)] if triangle else []), (a, a)]
        owner += [g + 1] * 3
        labels.append(1 if triangle else -1)
    content = {
        "A": [f"{a}, {b}" for a, b in pairs],
        "graph_indicator": owner,
        "graph_labels": labels,
        "node_labels": [n % 3 for n in range(len(owner))],
        "edge_labels": [a % 2 for a, _ in pairs],
        "node_attributes": [f"{n}.5, 2" for n in range(len(owner))],
        **files,
    }
    folder.mkdir(exist_ok=True)
    for name, lines in content.items():
        if lines is not None:
            (folder / f"TOY_{name}.txt").write_text("\n".join(map(str, lines)) + "\n")
    return folder


def test_a_tudataset_is_read(tmp_path):
    found = tudataset.read(write_set(tmp_path / "TOY"))
    assert [graph.label for graph in found] == [0, 1] * 6
    assert found[0].edges.tolist() == [[0, 1], [1, 2]]
    assert found[1].edges.tolist() == [[0, 1], [0, 2], [1, 2]]
    np.testing.assert_array_equal(found[1].nodes[:, :3], np.eye(3))
    np.testing.assert_array_equal(found[1].nodes[:, 3:], [[3.5, 2], [4.5, 2], [5.5, 2]])
    assert found[1].beside.argmax(1).tolist() == [0, 0, 1]


def test_folds_divide_a_set_and_keep_its_classes(tmp_path):
    write_set(tmp_path / "TOY", count=20)
    tests = []
    for fold in range(5):
        data = graphs.open_graphs(section(path=str(tmp_path / "TOY"), folds=5, fold=fold, batch_size=4), 1)
        assert [len(data.splits[name]) for name in ("train", "validation", "test")] == [12, 4, 4]
        assert sum(graph.label for graph in data.splits["test"]) == 2
        numbers = {name: {float(g.nodes[0, 3]) for g in some} for name, some in data.splits.items()}
        assert sum(map(len, numbers.values())) == len(set().union(*numbers.values())) == 20
        tests += numbers["test"]
    assert len(set(tests)) == 20
    assert data.features == (5, 2, 2, 2)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"graph_indicator": None}, "graph_indicator.txt"),
        ({"graph_indicator": [0] * 36}, "must be numbered from 1 to 12"),
        ({"A": ["1, 99"]}, "must be numbered from 1 to 36"),
        ({"A": ["1, 4"], "edge_labels": None}, "joins two graphs"),
        ({"A": ["1, 2, 3"]}, "3 numbers a line"),
        ({"edge_labels": [1]}, "1 lines for"),
        ({"node_labels": ["one"]}, "node_labels.txt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_files_that_are_no_set_are_named_in_one_line(tmp_path, files, told):
    with pytest.raises(ConfigError, match=told) as raised:
        tudataset.read(write_set(tmp_path / "TOY", **files))
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="is no folder"):
        tudataset.read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": 3}, "does not divide config.data.batch_size"),
        ({"shortest": 20}, "is more than config.data.longest"),
        ({"chains": 3}, "must be even"),
        ({"fold": 10}, "less than config.data.folds"),
        ({"source": "tu"}, "config.data.path is empty"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(changes, told):
    config = base_config(task="graph_classification", model="papers.plstm.gnn")
    config.data.update(changes)
    with pytest.raises(ConfigError, match=told):
        graphs.check(config)


def test_a_split_that_there_is_not_is_told():
    config = base_config(task="graph_classification", model="papers.plstm.gnn")
    config.evaluators.val.split = "extrapolatio"
    with pytest.raises(ConfigError, match="did you mean 'extrapolation'"):
        graphs.check(config)
    config.evaluators.val.split = "extrapolation"
    graphs.check(config)
    config.data.path = "somewhere"
    with pytest.raises(ConfigError, match=r"config.evaluators.val.split='extrapolation'"):
        graphs.check(config)

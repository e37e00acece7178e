"""Graphs with a class each: generated, or a set of the TUDataset collection in a local folder.

    source -> graphs -> splits -> batches of disjoint unions (paperlab.data.wiring) -> grain.MapDataset

A batch of `batch_size` graphs is dealt out to rows, one union each: rows are what devices and micro-batches divide. Their number
changes the order of sums alone.

    "chains"   generated: have the ends of every chain one colour? (paperlab.data.synthetic.chains); the split "extrapolation"
               has chains `stretch` times as long
    "tu"       the folder `path`; stratified folds: fold f is the test split, fold f + 1 the validation split, the others train
"""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paperlab.data import tudataset, wiring
from paperlab.data.synthetic import chains
from paperlab.errors import ConfigError
from paperlab.limits import SEED, at_least, did_you_mean, one_of, share

if TYPE_CHECKING:
    import grain

DEFAULTS = {
    "source": "chains",  # "chains" | "tu"; a non-empty `path` means "tu", whatever is written here
    "path": "",  # a folder with <NAME>_A.txt and its like
    "batch_size": 64,  # graphs, all processes together
    "rows": 0,  # unions of a batch; 0: as many as devices share the batch, times micro-batches
    "shuffle_seed": 0,
    "folds": 10,
    "fold": 0,  # which of them is the test split
    "train_graphs": 2048,  # of a generated set
    "test_graphs": 256,  # of each of its other splits
    "chains": 2,  # of a graph
    "shortest": 8,  # nodes of a chain
    "longest": 16,
    "twigs": 0.3,  # the share of inner nodes with one more node
    "stretch": 2,  # of the chains of the split "extrapolation"
    "node_features": 0,  # these three say what a set has where it is absent (dry run); 0: look
    "edge_features": 0,
    "classes": 0,
}
LIMITS = {
    "source": one_of("chains", "tu"),
    "batch_size": at_least(1, "graphs"),
    "rows": at_least(0, "0: as many as there are devices"),
    "shuffle_seed": SEED,
    "folds": at_least(3, "training, validation and test"),
    "fold": at_least(0),
    "train_graphs": at_least(1),
    "test_graphs": at_least(1),
    "chains": at_least(2),
    "shortest": at_least(2, "nodes: two ends"),
    "longest": at_least(2),
    "twigs": share(),
    "stretch": at_least(1),
    "node_features": at_least(0, "0: look"),
    "edge_features": at_least(0, "0: look"),
    "classes": at_least(0, "0: look"),
}
SPLITS = ("train", "validation", "test", "extrapolation")
NOMINAL = wiring.Sizes(
    nodes=64, edges=128, arcs=512, depth=32, width=64, fan=256, graphs=1, slots=8
)  # of an absent graph


class Features(NamedTuple):
    """Columns of nodes and of edges, classes, edges of one node at most."""

    nodes: int
    edges: int
    classes: int
    slots: int


def check(config: ConfigDict) -> None:
    """Raises ConfigError for options that do not go together."""
    data = config.data
    if data.rows and data.batch_size % data.rows:
        raise ConfigError(f"config.data.rows={data.rows} does not divide config.data.batch_size={data.batch_size}")
    if data.rows and data.rows % config.train.micro_batches:
        raise ConfigError(
            f"config.data.rows={data.rows} is no multiple of config.train.micro_batches={config.train.micro_batches}; 0 finds one"
        )
    if data.shortest > data.longest:
        raise ConfigError(f"config.data.shortest={data.shortest} is more than config.data.longest={data.longest}")
    if data.chains % 2:
        raise ConfigError(f"config.data.chains={data.chains}: must be even, for as many red ends as blue ones")
    if data.fold >= data.folds:
        raise ConfigError(f"config.data.fold={data.fold}: must be less than config.data.folds={data.folds}")
    if data.source == "tu" and not data.path:
        raise ConfigError("config.data.path is empty: give the folder of a TUDataset for config.data.source='tu'")
    for name, evaluator in config.get("evaluators", {}).items():
        if evaluator.split not in _finite(data):
            hint = "it never ends; choose validation" if evaluator.split == "train" else ""
            hint = hint or did_you_mean(evaluator.split, _finite(data))
            raise ConfigError(f"config.evaluators.{name}.split={evaluator.split!r}: {hint}")


def _finite(data: ConfigDict) -> tuple[str, ...]:
    return SPLITS[1:] if not data.path else SPLITS[1:3]


def open_graphs(data: ConfigDict, rows: int) -> "Graphs":
    """The set that a data section names; what it needs is found once a process."""
    fields = {name: value for name, value in data.items() if name not in ("batch_size", "rows", "shuffle_seed")}
    splits = _read(tuple(sorted(fields.items())))
    return Graphs(splits, data.batch_size, rows, data.shuffle_seed)


@lru_cache(maxsize=12)
def _read(fields: tuple) -> dict[str, list[wiring.Graph]]:
    data = ConfigDict(dict(fields))
    return _folds(data) if data.path else _generated(data)


def _generated(data: ConfigDict) -> dict[str, list[wiring.Graph]]:
    made = {}
    for number, split in enumerate(SPLITS):
        stretch = data.stretch if split == "extrapolation" else 1
        options = {"count": data.chains, "twigs": data.twigs, "split": number}
        options |= {"shortest": data.shortest * stretch, "longest": data.longest * stretch}
        count = data.train_graphs if split == "train" else data.test_graphs
        found = (chains.chains(i, **options) for i in range(count))
        made[split] = [wiring.prepared(n, e, np.zeros((len(e), 0), np.float32), label) for n, e, label in found]
    return made


def _folds(data: ConfigDict) -> dict[str, list[wiring.Graph]]:
    try:
        from sklearn.model_selection import StratifiedKFold
    except ImportError:
        raise ConfigError(
            "config.data.path: folds need the package scikit-learn: pip install 'paperlab[vision]'"
        ) from None
    raw = tudataset.read(data.path)
    labels = np.array([graph.label for graph in raw])
    if len(raw) < data.folds:
        raise ConfigError(f"config.data.folds={data.folds}: {data.path} holds only {len(raw)} graphs")
    parts = StratifiedKFold(data.folds, shuffle=True, random_state=0).split(np.zeros(len(raw)), labels)
    fold_of = np.zeros(len(raw), int)
    for number, (_, members) in enumerate(parts):
        fold_of[members] = number
    graphs = [wiring.prepared(*graph) for graph in raw]
    test, validation = data.fold, (data.fold + 1) % data.folds
    return {
        "train": [g for g, f in zip(graphs, fold_of, strict=True) if f not in (test, validation)],
        "validation": [g for g, f in zip(graphs, fold_of, strict=True) if f == validation],
        "test": [g for g, f in zip(graphs, fold_of, strict=True) if f == test],
    }


class Graphs:
    """Splits of graphs and their batches."""

    def __init__(self, splits: dict[str, list[wiring.Graph]], batch_size: int, rows: int, seed: int):
        self.splits, self.rows, self.seed = splits, rows, seed
        self.groups = {name: wiring.strata(graphs, batch_size) for name, graphs in splits.items()}
        found = {name: wiring.sizes(graphs, self.groups[name], rows) for name, graphs in splits.items()}
        common = found["train"]
        for name in ("validation", "test"):
            common = wiring.larger(common, found[name])
        self.sizes = {name: found[name] if name == "extrapolation" else common for name in splits}

    @property
    def features(self) -> Features:
        """What a model must know of the set."""
        first = self.splits["train"][0]
        labels = {graph.label for graphs in self.splits.values() for graph in graphs}
        slots = max(size.slots for size in self.sizes.values())
        return Features(first.nodes.shape[1], first.beside.shape[1], max(labels) + 1, slots)

    def steps_of_epoch(self) -> int:
        """Batches in which each training graph comes once."""
        return max(map(len, self.groups["train"]))

    def batches(self, split: str, process_index: int = 0, process_count: int = 1) -> "grain.MapDataset":
        """This process's rows of every batch: endless and shuffled for "train", else one pass."""
        import grain

        if split not in self.splits:
            raise ConfigError(f"split {split!r}: {did_you_mean(split, self.splits)}")
        if self.rows % process_count:
            raise ConfigError(f"config.data.rows={self.rows}: give a multiple of {process_count} processes")
        mine = range(self.rows)[process_index * self.rows // process_count :][: self.rows // process_count]
        graphs, groups, room = self.splits[split], self.groups[split], self.sizes[split]
        features, seed = self.features[:2], self.seed if split == "train" else None

        def batch(index: int) -> dict[str, np.ndarray]:
            chosen = wiring.batch_of(groups, index, seed)
            unions = [
                wiring.union([graphs[g] if g >= 0 else None for g in chosen[row :: self.rows]], room, features)
                for row in mine
            ]
            return {name: np.stack([one[name] for one in unions]) for name in unions[0]}

        length = sys.maxsize if split == "train" else max(map(len, groups))
        return grain.MapDataset.range(length).map(batch)


def nominal(data: ConfigDict, rows: int) -> tuple[Features, wiring.Sizes]:
    """What an absent set is taken for: the stated features, and graphs of usual size."""
    graphs = -(-data.batch_size // rows)
    sizes = wiring.Sizes(*(n * graphs for n in NOMINAL))._replace(depth=NOMINAL.depth, slots=NOMINAL.slots)
    return Features(data.node_features, data.edge_features, data.classes, sizes.slots), sizes


def absent(data: ConfigDict) -> bool:
    """Whether the folder is not there, and the config says what it would hold."""
    from pathlib import Path

    return bool(data.path and data.node_features and data.classes and not Path(data.path).is_dir())


def batch_shapes(rows: int, room: wiring.Sizes, features: Features) -> dict[str, Any]:
    """{name: (shape, dtype)} of a batch of `rows` unions."""
    empty = wiring.union([], room, features[:2])
    return {name: ((rows, *a.shape), a.dtype) for name, a in empty.items()}

"""The configurations of pLSTM on graphs; `experiments/plstm.py` names them as its variants."""

from typing import NamedTuple

from ml_collections import ConfigDict

from paperlab.config import base_config

MODEL, NETWORKS = "papers.plstm.graph_model", "papers.plstm.gnn"


class Collection(NamedTuple):
    """What a set of the TUDataset collection holds: columns of nodes and edges, classes, steps of 100 epochs in batches of 64."""

    node_features: int
    edge_features: int
    classes: int
    steps: int


TU = {
    "MUTAG": Collection(7, 4, 2, 300),
    "NCI1": Collection(37, 0, 2, 5200),
    "PROTEINS": Collection(4, 0, 2, 1400),
    "PTC_FM": Collection(18, 4, 2, 500),
}


def _config(model: str) -> ConfigDict:
    config = base_config(task="graph_classification", model=model)
    config.checkpoint.update(best_metric="val_accuracy", best_mode="max")
    with config.unlocked():
        config.evaluators.test = ConfigDict({"split": "test", "every": 0, "batches": 0})
    config.evaluators.val.batches = 0
    config.data.batch_size = 32
    return config


def _chains(config: ConfigDict) -> ConfigDict:
    config.train.update(steps=300, checkpoint_every=100)
    config.optim.update(lr=3e-3, weight_decay=0.01)
    config.evaluators.val.every = 50
    with config.unlocked():
        config.evaluators.extrapolation = ConfigDict({"split": "extrapolation", "every": 50, "batches": 0})
    return config


def graph() -> ConfigDict:
    """Two chains a graph, with twigs: have the ends of each one colour? Tried on chains of twice the length, too."""
    config = _chains(_config(MODEL))
    config.model.update(width=48, gate_bias=-2.0)
    return config


def graph_network(kind: str, depth: int = 4) -> ConfigDict:
    """A network of messages on the same graphs: nothing gets further than `depth` neighbours."""
    config = _chains(_config(NETWORKS))
    config.model.update(kind=kind, width=48, depth=depth)
    return config


def _paper(config: ConfigDict, name: str) -> ConfigDict:
    """Section 7.3: 100 epochs, batch 64, AdamW 1e-3, cosine after 5 epochs of warm-up; a fold of ten."""
    known = TU[name]
    config.data.update(path=f"TUDataset/{name}", batch_size=64, folds=10, fold=0)
    config.data.update(node_features=known.node_features, edge_features=known.edge_features, classes=known.classes)
    config.train.update(steps=known.steps, checkpoint_every=known.steps // 10)
    config.evaluators.val.every = known.steps // 100
    config.optim.update(lr=1e-3, warmup=0.05, b2=0.999, weight_decay=0.01)
    return config


def full_tu(name: str = "NCI1") -> ConfigDict:
    """The paper's model: width 96, two double blocks, the second on the graph turned round, fewer than 300k parameters."""
    config = _paper(_config(MODEL), name)
    config.model.update(width=96, heads=4, double_blocks=2, expand=1.5, pooling="mean")
    return config


def full_tu_network(kind: str, depth: int = 4, name: str = "NCI1") -> ConfigDict:
    """Its baselines: width 128, 4 or 8 layers, sum pooling."""
    config = _paper(_config(NETWORKS), name)
    config.model.update(kind=kind, width=128, depth=depth, pooling="sum")
    return config


def full_tu_folds(name: str = "NCI1") -> ConfigDict:
    """All ten folds, each tested at its best validation epoch."""
    config = full_tu(name)
    config.program = "papers.plstm.graph_folds"
    return config

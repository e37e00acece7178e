"""A task of a hundred numbers: regression by an MLP, uneven weights, a running mean and a count as mutable state."""

from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paperlab import config as defaults

ROWS, WIDTH, INPUTS = 8, 16, 4


def tiny_config(**changes: Any) -> ConfigDict:
    """The trainer's sections with small values; `changes` are dotted fields with "__" for the dot."""
    config = ConfigDict(
        {
            "seed": 3,
            "init_from": "",
            "train": {**defaults.TRAIN, "steps": 6, "log_every": 2, "checkpoint_every": 2},
            "optim": {**defaults.OPTIM, "lr": 0.05},
            "evaluators": {"val": {"split": "validation", "every": 4, "batches": 2}},
            "checkpoint": {**defaults.CHECKPOINT, "best_metric": "val_loss"},
            "mesh": {**defaults.MESH, "data": 1},
            "log": dict(defaults.LOG),
            "profile": dict(defaults.PROFILE),
            "faults": dict(defaults.FAULTS),
        }
    )
    with config.unlocked(), config.ignore_type():
        for name, value in changes.items():
            config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def draw(index: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Batch `index`: a function of the index alone; the weights are uneven, some rows have none."""
    rng = np.random.default_rng(index)
    x = rng.normal(size=(rows, INPUTS)).astype(np.float32)
    y = np.sin(x.sum(-1)) + 0.1 * rng.normal(size=rows)
    return {"x": x, "y": y.astype(np.float32), "weights": rng.integers(0, 4, rows).astype(np.float32)}


class TinyTask:
    sharding = ((r"hidden/kernel$", ("fsdp", "tensor")), (r"out/kernel$", ("tensor", None)))
    tokens_per_batch = ROWS
    validation = 5

    def __init__(self, rows: int = ROWS):
        self.rows = rows

    def init(self, key: jax.Array, batch: dict) -> tuple[Any, Any]:
        a, b = jax.random.split(key)
        params = {
            "hidden": {"kernel": jax.random.normal(a, (INPUTS, WIDTH)) / 2, "bias": jnp.zeros(WIDTH)},
            "out": {"kernel": jax.random.normal(b, (WIDTH,)) / 4, "bias": jnp.zeros(())},
        }
        return params, {"mean": jnp.zeros(INPUTS), "seen": jnp.zeros((), jnp.int32)}

    def predict(self, params: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return hidden @ params["out"]["kernel"] + params["out"]["bias"]

    def loss(self, params: Any, state: Any, batch: dict, key: jax.Array, step: jax.Array) -> tuple[Any, Any, dict]:
        noise = 0.0 * jax.random.normal(key, batch["y"].shape)
        error = (self.predict(params, batch["x"]) + noise - batch["y"]) ** 2
        weights = batch["weights"]
        state = {"mean": 0.9 * state["mean"] + 0.1 * batch["x"].mean(0), "seen": state["seen"] + len(error)}
        metrics = {"worst": (error.max(), jnp.ones(()))}
        return (error * weights).sum(), weights.sum(), {"metrics": metrics, "state": state}

    def evaluate(self, params: Any, state: Any, batch: dict) -> dict:
        error = (self.predict(params, batch["x"]) - batch["y"]) ** 2
        return {"loss": ((error * batch["weights"]).sum(), batch["weights"].sum())}

    def derive(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"root": metrics["loss"] ** 0.5}

    def data(self, split: str, process_index: int = 0, process_count: int = 1) -> Any:
        rows = self.rows // process_count
        mine = slice(process_index * rows, (process_index + 1) * rows)
        source = range(10**6) if split == "train" else range(10**7, 10**7 + self.validation)
        dataset = grain.MapDataset.source(source).map(lambda i: {k: v[mine] for k, v in draw(i, self.rows).items()})
        return dataset.repeat() if split == "train" else dataset

    def summary(self) -> dict:
        return {"baseline": 0.5}

    def show(self, params: Any, state: Any, workdir: Path) -> dict:
        (workdir / "shown.txt").write_text(str(int(state["seen"])))
        return {"shown": "shown.txt"}

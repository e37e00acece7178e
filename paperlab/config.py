"""What an experiment file may say: defaults, overrides, checks, and what makes two runs the same run.

An experiment file is Python with one function, `get_config(variant) -> ConfigDict`, that starts from `base_config`. Everything
that can be said has a default here or in the `DEFAULTS` of the task, model and data rooms, so a misspelt field is an error with
the nearest name, and a value of the wrong type is refused where it is written.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import re
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from paperlab.discovery import find, names
from paperlab.errors import ConfigError
from paperlab.limits import SEED, Limit, above, at_least, hold, one_of, share
from paperlab.overrides import flatten

TRAIN = {"steps": 1000, "micro_batches": 1, "log_every": 10, "checkpoint_every": 200, "ema_decay": 0.0}
OPTIM = {
    "name": "adamw",
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup": 0.05,
    "start_lr": 0.0,
    "final_lr": 0.1,
    "weight_decay": 0.1,
    "b1": 0.9,
    "b2": 0.95,
    "eps": 1e-8,
    "clip": 1.0,
    "decay_exclude": ("bias$", "scale$"),
    "freeze": (),
    "lr_groups": (),
}
EVALUATORS = {"val": {"split": "validation", "every": 200, "batches": 20}}
CHECKPOINT = {
    "keep": 3,
    "keep_every": 0,
    "best_metric": "val_bits_per_byte",
    "best_mode": "min",
    "asynchronous": True,
}
MESH = {"data": -1, "fsdp": 1, "tensor": 1, "device_memory": 80.0, "rules": ()}
LOG = {"tensorboard": False, "wandb": ""}
PROFILE = {"steps": ""}
# What to do when loss or gradient is not finite or the loss is a spike. policy: "stop", "skip" (the step changes nothing, at
# most `skips` in a row) or "rollback" (to the last checkpoint, its data since then left out, at most `rollbacks` times without
# a new checkpoint). spike: deviations above the running mean of the loss (0: no loss is a spike), from the step `warmup` on;
# decay: of that mean.
FAULTS = {"policy": "stop", "spike": 0.0, "warmup": 50, "decay": 0.98, "skips": 10, "rollbacks": 3}
FAULT_POLICIES = ("stop", "skip", "rollback")

# These may differ between a run and its resumption: they don't change what is computed (micro-batches only the order of sums).
FREE = ("mesh", "log", "evaluators", "profile", "checkpoint", "faults", "slug", "variant")
FREE_FIELDS = ("train.steps", "train.checkpoint_every", "train.log_every", "train.micro_batches", "data.cache_dir")


def base_config(*, task: str = "language_modelling", model: str = "lm") -> ConfigDict:
    """The defaults of every section, type-checked and locked, for a given task and model (see `discovery.find`).

    Sections: task, model, mixers (one entry a mixer; the unused are dropped when resolved), data, train, optim,
    evaluators (any number of names), checkpoint, mesh, log, profile, faults; and seed, init_from, program.
    """
    data = importlib.import_module("paperlab.data")
    config = ConfigDict(
        {
            "slug": "",
            "variant": "",
            "program": "",
            "seed": 0,
            "init_from": "",
            "task": {"name": task, **getattr(find("tasks", task), "DEFAULTS", {})},
            "model": {"name": model, **getattr(find("models", model), "DEFAULTS", {})},
            "mixers": {name: mixer_defaults(find("mixers", name)) for name in names("mixers")},
            "data": dict(data.DEFAULTS),
            "train": dict(TRAIN),
            "optim": dict(OPTIM),
            "evaluators": {name: dict(options) for name, options in EVALUATORS.items()},
            "checkpoint": dict(CHECKPOINT),
            "mesh": dict(MESH),
            "log": dict(LOG),
            "profile": dict(PROFILE),
            "faults": dict(FAULTS),
        },
        convert_dict=True,
    )
    return config.lock()


def mixer_defaults(module: Any) -> dict[str, Any]:
    """The options of a mixer: the fields of its `Mixer`, without those that the backbone sets."""
    set_elsewhere = {"width", "heads", "dtype", "parent", "name"}
    return {f.name: f.default for f in dataclasses.fields(module.Mixer) if f.name not in set_elsewhere}


def load_experiment(reference: str) -> ConfigDict:
    """Reads `path/to/file.py[:variant]` and returns its config, with `slug` and `variant` filled in.

    Raises:
      ConfigError: no such file or variant, no `get_config`, or one that raises.
    """
    path, _, variant = reference.partition(":")
    file = Path(path)
    if not file.is_file():
        near = get_close_matches(path, [str(p) for p in Path("experiments").glob("*.py")], n=1, cutoff=0.4)
        raise ConfigError(f"--config: there is no file {path!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--config: {path} does not load: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config: {path} has no function get_config(variant)")
    variants = getattr(module, "VARIANTS", None)
    if variants is not None and variant not in variants:
        known = [name for name in variants if name]
        near = get_close_matches(variant, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"--config: {path} has no variant {variant!r}: {hint}")
    try:
        config = module.get_config(variant)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--config: {path}: get_config raised {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config: {path}: get_config must return a ConfigDict, not {type(config).__name__}")
    with config.unlocked():
        config.slug, config.variant = file.stem, variant
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy in which only what is used is left: the mixers that the model names.

    Raises:
      ConfigError: sizes that are not positive, shares outside 0..1, unknown evaluator splits, and the like.
    """
    resolved = ConfigDict(config.to_dict(), convert_dict=True)
    model = find("models", resolved.model.name)
    used = model.mixers_of(resolved) if hasattr(model, "mixers_of") else set()
    for name in used:
        find("mixers", name)
    resolved.mixers = ConfigDict({name: options for name, options in resolved.mixers.items() if name in used})
    check(resolved)
    return resolved.lock()


def check(config: ConfigDict) -> None:
    """Raises ConfigError for values that no run can use, whatever its task and model."""
    positive = ("train.steps", "train.micro_batches", "train.log_every", "data.sequence_length", "data.batch_size")
    for path, value in flatten(config):
        if path in positive and value < 1:
            raise ConfigError(f"config.{path}={value}: must be at least 1")
    train, optim, mesh = config.train, config.optim, config.mesh
    shares = {"optim.warmup": optim.warmup, "train.ema_decay": train.ema_decay, "optim.final_lr": optim.final_lr}
    for path, value in shares.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"config.{path}={value}: must lie between 0 and 1")
    if train.ema_decay == 1:
        raise ConfigError("config.train.ema_decay=1.0: the average would never move; use 0.999 or less")
    for path, value in {
        "optim.lr": optim.lr,
        "optim.clip": optim.clip,
        "optim.weight_decay": optim.weight_decay,
    }.items():
        if not value >= 0:
            raise ConfigError(f"config.{path}={value}: must not be negative")
    for axis in ("data", "fsdp", "tensor"):
        if mesh[axis] < 1 and not (axis == "data" and mesh[axis] == -1):
            raise ConfigError(f"config.mesh.{axis}={mesh[axis]}: must be at least 1" + " (or -1)" * (axis == "data"))
    for name, evaluator in config.evaluators.items():
        if evaluator.batches < 0 or evaluator.every < 0:
            raise ConfigError(
                f"config.evaluators.{name}: every and batches must not be negative (0 = only at the end, all)"
            )
    if train.checkpoint_every < 0:
        raise ConfigError(
            f"config.train.checkpoint_every={train.checkpoint_every}: must be 0 (only at the end) or more"
        )
    if config.data.get("batch_size", train.micro_batches) % train.micro_batches:
        raise ConfigError(
            f"config.train.micro_batches={train.micro_batches} does not divide config.data.batch_size={config.data.batch_size}"
        )
    check_faults(config.faults)


def check_faults(faults: ConfigDict) -> None:
    """Raises ConfigError for a policy that there is not, and for numbers out of range."""
    if faults.policy not in FAULT_POLICIES:
        near = get_close_matches(faults.policy, FAULT_POLICIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(FAULT_POLICIES)}"
        raise ConfigError(f"config.faults.policy={faults.policy!r}: {hint}")
    if not 0 <= faults.spike < float("inf"):
        raise ConfigError(
            f"config.faults.spike={faults.spike}: must not be negative (0: no loss is a spike; 6 is usual)"
        )
    if not 0 <= faults.decay < 1:
        raise ConfigError(f"config.faults.decay={faults.decay}: must be at least 0 and less than 1, such as 0.98")
    for name, least in (("warmup", 2), ("skips", 1), ("rollbacks", 1)):
        if faults[name] < least:
            raise ConfigError(f"config.faults.{name}={faults[name]}: must be at least {least}")


def to_json(config: ConfigDict) -> str:
    """The config as JSON text, readable and stable."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`: lists become the tuples that they were."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    return ConfigDict(tuples(json.loads(text)), convert_dict=True).lock()


def mathematics(config: ConfigDict) -> dict[str, Any]:
    """The fields that change what is computed, as a flat dictionary of plain JSON values."""
    flat = dict(flatten(json.loads(config.to_json_best_effort())))
    free = tuple(f"{name}." for name in FREE)
    return {path: v for path, v in flat.items() if not path.startswith(free) and path not in (*FREE, *FREE_FIELDS)}


def digest(config: ConfigDict) -> str:
    """8 hex digits that name the run: equal if and only if the mathematics is."""
    text = json.dumps(mathematics(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{path: (old value, new value)} of two flat dictionaries; a missing field counts as None."""
    paths = [*old, *(path for path in new if path not in old)]
    return {path: (old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)}

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
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from paperlab.checks import check_complete, check_values
from paperlab.discovery import find, names
from paperlab.errors import ConfigError
from paperlab.limits import did_you_mean
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
    "project": (),
    "stacked": ("blocks/",),  # for lamb: leaves whose leading axis counts layers
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

# What every config has; {}: the task, the model and the mixers say what.
SECTIONS: dict[str, Any] = {
    **dict.fromkeys(("slug", "variant", "program", "init_from"), ""),
    "seed": 0,
    "task": {"name": ""},
    "model": {"name": ""},
    **{name: {} for name in ("mixers", "data", "evaluators")},
    "train": TRAIN,
    "optim": OPTIM,
    "checkpoint": CHECKPOINT,
    "mesh": MESH,
    "log": LOG,
    "profile": PROFILE,
    "faults": FAULTS,
}

# These may differ between a run and its resumption: they don't change what is computed (micro-batches only the order of sums).
FREE = ("mesh", "log", "evaluators", "profile", "checkpoint", "faults", "slug", "variant")
FREE_FIELDS = ("train.steps", "train.checkpoint_every", "train.log_every", "train.micro_batches", "data.cache_dir")


def base_config(*, task: str = "language_modelling", model: str = "lm") -> ConfigDict:
    """The defaults of every section, type-checked and locked, for a given task and model (see `discovery.find`).

    Sections: task, model, mixers (one entry a mixer; the unused are dropped when resolved), data, train, optim,
    evaluators (any number of names), checkpoint, mesh, log, profile, faults; and seed, init_from, program.
    """
    data = _data_room(find("tasks", task))
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
    module = _load_module(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"--config: {path} has no function get_config(variant)")
    variants = getattr(module, "VARIANTS", None)
    if isinstance(variants, Mapping | list | tuple | set) and variant not in variants:
        known = [str(name) for name in variants if name]
        hint = did_you_mean(variant, known) if known else "it has none"
        raise ConfigError(f"--config: {path} has no variant {variant!r}: {hint}")
    try:
        config = get_config(variant)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config: {path}: get_config raised {_described(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config: {path}: get_config must return a ConfigDict, not {type(config).__name__}")
    with config.unlocked():
        config.slug, config.variant = Path(path).stem, variant
    return config


def _load_module(path: str) -> ModuleType:
    file = Path(path)
    try:
        is_file = file.is_file()
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path!r}: {error.strerror or error}") from None
    if not is_file:
        near = get_close_matches(path, [str(p) for p in Path("experiments").glob("*.py")], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "give the path of an experiment, such as experiments/gla.py"
        raise ConfigError(f"--config: there is no file {path!r}; {hint}")
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"--config: {path!r} is not a Python file (.py): give one with a function get_config(variant)"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config: {path} does not load: {_described(error, path)}") from error
    return module


def _described(error: BaseException, path: str) -> str:
    """An exception with the line of the experiment file that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy in which only what is used is left: the mixers that the model names.

    Raises:
      ConfigError: a field that is missing or of another type, a name that nothing has, sizes that are not positive,
        shares outside 0..1, options that do not go together, and the like.
    """
    check_complete(config, SECTIONS)
    resolved = ConfigDict(config.to_dict(), convert_dict=True)
    rooms = {section: _room(resolved, section) for section in ("task", "model")}
    rooms["data"] = _data_room(rooms["task"])
    used = rooms["model"].mixers_of(resolved) if hasattr(rooms["model"], "mixers_of") else set()
    resolved.mixers = ConfigDict({name: options for name, options in resolved.mixers.items() if name in used})
    for name in used:
        find("mixers", name)
    for name in resolved.mixers:
        rooms[f"mixers.{name}"] = mixer = find("mixers", name)
        check_complete(resolved.mixers[name], mixer_defaults(mixer), f"mixers.{name}")
    for name, evaluator in resolved.evaluators.items():
        check_complete(evaluator, EVALUATORS["val"], f"evaluators.{name}")
    if resolved.program:
        _named("programs", resolved.program, "config.program")
    check_complete(resolved, {"data": rooms["data"].DEFAULTS})
    check_values(resolved, rooms)
    check_faults(resolved.faults)
    return resolved.lock()


def _room(config: ConfigDict, section: str) -> ModuleType:
    """The module of `config.<section>.name`, whose fields the section must have."""
    name = config[section].name
    module = _named(f"{section}s", name, f"config.{section}.name")
    cure = (
        f"{section} {name!r} has other fields than this config; say base_config({section}={name!r}) in the experiment"
    )
    check_complete(config[section], getattr(module, "DEFAULTS", {}), section, cure)
    return module


def _data_room(task: ModuleType) -> ModuleType:
    """The module whose DEFAULTS are the data section of a task: text, unless the task's `DATA` names another."""
    return importlib.import_module(getattr(task, "DATA", "paperlab.data"))


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


def _named(kind: str, name: str, field: str) -> ModuleType:
    """What `find` gives; where there is none, the field that named it is named."""
    try:
        return find(kind, name)
    except ConfigError as error:
        raise ConfigError(f"{field}={name!r}: {error}") from None


def to_json(config: ConfigDict) -> str:
    """The config as JSON text, readable and stable."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`: lists become the tuples that they were. Raises ConfigError where the text is no config."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"it holds no object but {type(values).__name__}")
        return ConfigDict(tuples(values), convert_dict=True).lock()
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"not a config: {error}") from error


def mathematics(config: ConfigDict) -> dict[str, Any]:
    """The fields that change what is computed, as a flat dictionary of plain JSON values."""
    flat = dict(flatten(json.loads(config.to_json_best_effort())))
    free = tuple(f"{name}." for name in FREE)
    flat = {path: v for path, v in flat.items() if not path.startswith(free) and path not in (*FREE, *FREE_FIELDS)}
    return {path: v + 0.0 if isinstance(v, float) else v for path, v in flat.items()}  # -0.0 is 0.0


def digest(config: ConfigDict) -> str:
    """8 hex digits that name the run: equal if and only if the mathematics is."""
    text = json.dumps(mathematics(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{path: (old value, new value)} of two flat dictionaries; a missing field counts as None."""
    paths = [*old, *(path for path in new if path not in old)]
    return {path: (old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)}

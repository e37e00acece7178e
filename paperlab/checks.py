"""What a config must be before anything is run: complete, of the right types, within its limits, sensible together.

Limits of tasks, models, mixers and data stand in their own modules; here are those of the sections that every run has.
"""

import numbers
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from paperlab.errors import ConfigError
from paperlab.limits import SEED, Limit, above, at_least, hold, one_of, share
from paperlab.overrides import flatten

LIMITS: dict[str, Limit] = {
    "seed": SEED,
    "train.steps": at_least(1),
    "train.micro_batches": at_least(1),
    "train.log_every": at_least(1),
    "train.checkpoint_every": at_least(0, "0: only at the end"),
    "train.ema_decay": share("0: no moving average", below=True),
    "optim.lr": at_least(0),
    "optim.warmup": share("of the steps"),
    "optim.start_lr": share("of lr"),
    "optim.final_lr": share("of lr"),
    "optim.weight_decay": at_least(0),
    "optim.b1": share(below=True),
    "optim.b2": share(below=True),
    "optim.eps": at_least(0),
    "optim.clip": at_least(0, "0: no clipping"),
    "evaluators.*.every": at_least(0, "0: only at the end"),
    "evaluators.*.batches": at_least(0, "0: all"),
    "checkpoint.keep": at_least(1),
    "checkpoint.keep_every": at_least(0, "0: none but the newest and the best"),
    "checkpoint.best_mode": one_of("min", "max"),
    "mesh.data": at_least(1, "-1: all devices that the other axes leave", also=(-1,)),
    "mesh.fsdp": at_least(1),
    "mesh.tensor": at_least(1),
    "mesh.device_memory": above(0, "GB"),
}
KINDS: tuple[tuple[type | tuple, str], ...] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a text"),
    ((tuple, list), "a tuple of texts"),
)


def check_complete(config: ConfigDict, defaults: Mapping[str, Any], path: str = "", cure: str = "") -> None:
    """Raises ConfigError where a field of `defaults` is missing or holds another type.

    Args:
      config: what is checked; fields beyond `defaults` are its own affair.
      defaults: nested, with values of the right types; an empty section asks only that there be one.
      path: of the section, for messages.
      cure: what to say where something is missing.
    """
    cure = cure or "start from paperlab.config.base_config()"
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"config.{path}={config!r}: must be a section; {cure}")
    for name, default in defaults.items():
        here = f"{path}.{name}" if path else name
        if name not in config:
            raise ConfigError(f"there is no field config.{here}: {cure}")
        if isinstance(default, Mapping):
            check_complete(config[name], default, here, cure)
        else:
            _check_type(config[name], default, here)


def _check_type(value: Any, default: Any, path: str) -> None:
    for kind, words in KINDS:
        if isinstance(default, kind):
            right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            right = right or (kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool))
            if kind == (tuple, list) and right:
                right = all(isinstance(item, str) for item in value)
            if not right:
                raise ConfigError(f"config.{path}={value!r}: must be {words}, such as {default!r}")
            return


def check_values(config: ConfigDict, rooms: Mapping[str, ModuleType]) -> None:
    """Raises ConfigError for values that no run can use.

    Args:
      config: complete.
      rooms: {section: module}; their `LIMITS` hold for the fields of the section, and their `check(config)` is asked last.
    """
    limits = dict(LIMITS)
    for section, module in rooms.items():
        limits |= {f"{section}.{name}": limit for name, limit in getattr(module, "LIMITS", {}).items()}
    hold(dict(flatten(config)), limits, "config.")
    for name in ("slug", "variant"):
        if "/" in config[name] or config[name].startswith("."):
            raise ConfigError(
                f"config.{name}={config[name]!r}: must be a plain name; it becomes part of a folder's name"
            )
    rows, micro = config.data.batch_size, config.train.micro_batches
    if rows % micro:
        raise ConfigError(
            f"config.train.micro_batches={micro} does not divide config.data.batch_size={rows}; take one that does"
        )
    for module in dict.fromkeys(rooms.values()):
        if hasattr(module, "check"):
            module.check(config)

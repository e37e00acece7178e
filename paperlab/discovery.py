"""Finds models, mixers and tasks by their file names; there is no registry to keep.

    find("mixers", "gla")              -> paperlab/mixers/gla.py
    find("tasks", "papers.gla.mqar")   -> paperlab/papers/gla/mqar.py

Every such module says in `DEFAULTS` (mixers: in the fields of `Mixer`) which options it has, and makes itself from a config.
"""

import importlib
import importlib.util
import pkgutil
from difflib import get_close_matches
from types import ModuleType

from paperlab.errors import ConfigError


def names(kind: str) -> list[str]:
    """The plain names that `find(kind, name)` knows, sorted."""
    package = importlib.import_module(f"paperlab.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def find(kind: str, name: str) -> ModuleType:
    """Imports the module of that kind and name.

    Args:
      kind: "mixers", "models" or "tasks".
      name: a file name in that room, or a dotted path below `paperlab` for what belongs to one paper.

    Raises:
      ConfigError: if there is no such module; names the nearest ones.
    """
    module_name = f"paperlab.{name}" if "." in name else f"paperlab.{kind}.{name}"
    try:
        found = importlib.util.find_spec(module_name) is not None
    except (ModuleNotFoundError, ValueError):
        found = False
    if not found and "." in name:
        raise ConfigError(
            f"there is no module {module_name}; a dotted name is a path below paperlab: papers.<slug>.<file>"
        )
    if not found:
        known = names(kind)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"no {kind[:-1]} is called {name!r}: {hint} (or a dotted name such as papers.<slug>.<file>)")
    return importlib.import_module(module_name)

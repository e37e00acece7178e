"""Finds models, mixers and tasks by their file names; there is no registry to keep.

    find("mixers", "gla")              -> paperlab/mixers/gla.py
    find("tasks", "papers.gla.mqar")   -> paperlab/papers/gla/mqar.py

Every such module says in `DEFAULTS` (mixers: in the fields of `Mixer`) which options it has, perhaps in `LIMITS` what they
may be (paperlab.limits), and makes itself from a config; a task also says in `DATA` which module describes its data section,
where that is not `paperlab.data`. A function `check(config)` raises ConfigError for options that do not go together; it
allocates nothing and reads no data.
"""

import importlib
import importlib.util
import pkgutil
import re
from difflib import get_close_matches
from types import ModuleType

from paperlab.errors import ConfigError

MADE_BY = {"mixers": "Mixer", "models": "make", "tasks": "make", "programs": "program"}
_NAME = re.compile(r"[a-z]\w*(\.[a-z]\w*)*", re.ASCII | re.IGNORECASE)


def names(kind: str) -> list[str]:
    """The plain names that `find(kind, name)` knows, sorted; none where there is no such room."""
    if importlib.util.find_spec(f"paperlab.{kind}") is None:
        return []
    package = importlib.import_module(f"paperlab.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def find(kind: str, name: str) -> ModuleType:
    """Imports the module of that kind and name.

    Args:
      kind: "mixers", "models", "tasks" or "programs".
      name: a file name in that room, or a dotted path below `paperlab` for what belongs to one paper.

    Raises:
      ConfigError: if there is no such module (names the nearest ones), or it is of another kind.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"no {kind[:-1]} can be called {name!r}: {_known(kind, name)}")
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
        raise ConfigError(f"no {kind[:-1]} is called {name!r}: {_known(kind, name)}")
    module = importlib.import_module(module_name)
    if not hasattr(module, MADE_BY[kind]):
        raise ConfigError(f"{module_name} is no {kind[:-1]} (it has no {MADE_BY[kind]}): {_known(kind, name)}")
    return module


def _known(kind: str, name: str) -> str:
    known = names(kind)
    near = get_close_matches(name[:100], known, n=1)
    if not known:
        return "give a dotted name such as papers.<slug>.<file>"
    choice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"{choice} (or a dotted name such as papers.<slug>.<file>)"

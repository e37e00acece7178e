"""Known answers of pLSTM; every part of the paper brings its own kinds, in a file `_plstm_*.py` beside this one.

A part has a dictionary KINDS = {kind: function(options, inputs, params) -> {name: array}}.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

PREFIX = "_plstm_"


@cache
def kinds() -> dict[str, Callable[[dict, dict, dict], dict]]:
    """Every kind that one of the parts knows."""
    found: dict = {}
    for part in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if part.name.startswith(PREFIX):
            module = importlib.import_module(f"{__package__}.{part.name}")
            twice = found.keys() & module.KINDS.keys()
            assert not twice, f"{part.name}: {twice} stands in another part too"
            found |= module.KINDS
    return found


def run(kind: str, options: dict, inputs: dict, params: dict) -> dict:
    """Every array that a case of pLSTM may ask for."""
    if kind not in kinds():
        raise ValueError(f"plstm: unknown kind {kind!r}")
    return kinds()[kind](options, inputs, params)

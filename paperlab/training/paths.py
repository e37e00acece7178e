"""Names for the leaves of a tree ("blocks/gla/q/kernel"), rules on those names, and the parameter table."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import jax
import numpy as np

from paperlab.errors import ConfigError

Tree = Any


def name_of(path: tuple) -> str:
    """A key path of jax.tree_util as text."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Tree) -> dict[str, Any]:
    """{path: leaf} in the order of the tree."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_name(function: Callable, tree: Tree, *rest: Tree) -> Tree:
    """jax.tree.map with the path of the leaf as first argument."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(name_of(path), *leaves), tree, *rest)


def nest(flat: dict[str, Any]) -> dict:
    """Nested dicts from {path: leaf}, the inverse of `flatten` for trees of dicts."""
    tree: dict = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def compile_rule(regex: str, field: str) -> re.Pattern:
    """The compiled rule; ConfigError when it is no regular expression."""
    try:
        return re.compile(regex)
    except re.error as error:
        raise ConfigError(f"{field}: {regex!r} is not a regular expression: {error}") from error


def matches(regex: str, names: Iterable[str], field: str, *, may_be_empty: bool = False) -> set[str]:
    """The names that `regex` finds.

    Raises:
      ConfigError: nothing matches (the message names the nearest paths), unless `may_be_empty`.
    """
    names = list(names)
    pattern = compile_rule(regex, field)
    found = {name for name in names if pattern.search(name)}
    if not found and not may_be_empty:
        raise ConfigError(f"{field}: {regex!r} matches no parameter; nearest: {', '.join(_nearest(regex, names))}")
    return found


def _nearest(regex: str, names: list[str]) -> list[str]:
    word = re.sub(r"[^\w/]+", "", regex)
    by_part = {part: name for name in names for part in (name, *name.split("/"))}
    close = get_close_matches(word, by_part, n=6, cutoff=0.5)
    return list(dict.fromkeys(by_part[part] for part in close))[:3] or names[:3]


def count(tree: Tree) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def parameter_table(shapes: Tree, shardings: Tree, notes: dict[str, str] | None = None) -> str:
    """Path, shape, dtype, count, sharding and bytes per device of every leaf, with totals, as plain text."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    notes, placed = notes or {}, flatten(shardings)
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    rows, total, total_bytes = [], 0, 0
    for name, leaf in flatten(shapes).items():
        local = int(np.prod(placed[name].shard_shape(leaf.shape))) * leaf.dtype.itemsize
        size = int(np.prod(leaf.shape))
        total, total_bytes = total + size, total_bytes + local
        spec = _spec(placed[name]) + (f" ({notes[name]})" if name in notes else "")
        rows.append((name, "x".join(map(str, leaf.shape)) or "-", str(leaf.dtype), f"{size:,}", spec, f"{local:,}"))
    headers = ["path", "shape", "dtype", "count", "sharding", "bytes/device"]
    footers = ["total", "", "", f"{total:,}", "", f"{total_bytes:,}"]
    for header, footer in zip(headers, footers, strict=True):
        right = header in ("count", "bytes/device")
        table.add_column(header, footer=footer, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    text = StringIO()
    Console(file=text, width=max(_width(rows, headers, footers), 40)).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _spec(sharding: jax.sharding.NamedSharding) -> str:
    def shown(axis: Any) -> str:
        return "+".join(axis) if isinstance(axis, tuple) else axis or "-"

    return ",".join(shown(axis) for axis in sharding.spec) if any(sharding.spec) else "replicated"


def _width(rows: list[tuple], headers: list[str], footers: list[str]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(headers, footers, *rows, strict=True)) + 2

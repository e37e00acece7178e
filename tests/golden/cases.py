"""Known answers as they lie on disk: folders with `cases.json` and `.npz` files -> cases.

A case says what is computed (`kind`, `options`, arrays) and what must come out (outputs with tolerances). Arrays are known by
their plain names; `roles` maps plain names to the names in the file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SHIPPED = Path(__file__).parent
LICENCES = ("own", "MIT", "Apache-2.0", "BSD")


@dataclass(frozen=True)
class Case:
    """One computation; `name` is for people, it decides nothing."""

    slug: str
    name: str
    file: Path
    kind: str
    options: dict[str, Any]
    inputs: tuple[str, ...]
    params: tuple[str, ...]
    outputs: dict[str, dict[str, Any]]
    roles: dict[str, str] = field(default_factory=dict)
    licence: str = ""

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(inputs, params, expected outputs) under plain names."""
        with np.load(self.file, allow_pickle=False) as stored:
            return tuple(self._plain(names, stored) for names in (self.inputs, self.params, self.outputs))

    def tolerances(self) -> dict[str, dict[str, Any]]:
        """Tolerances of the outputs under plain names."""
        return self._plain(self.outputs, self.outputs)

    def _plain(self, names, values) -> dict:
        aliases: dict[str, list[str]] = {}
        for plain, stored in self.roles.items():
            aliases.setdefault(stored, []).append(plain)
        return {plain: values[name] for name in names for plain in aliases.get(name, [name])}


def slugs(root: Path) -> list[str]:
    """Folders of `root` that hold known answers."""
    return sorted(path.parent.name for path in root.glob("*/cases.json"))


def read(root: Path, slug: str) -> list[Case]:
    """The cases of one folder; tables to look up (`reference`) are left out."""
    text = (root / slug / "cases.json").read_text(encoding="utf-8")
    return [case for name, entry in json.loads(text).items() for case in _cases(root / slug, name, entry)]


def _cases(folder: Path, name: str, entry: dict[str, Any]) -> Iterator[Case]:
    subcases = entry.get("subcases")
    if subcases is None:
        if not entry.get("reference"):
            yield _case(folder, name, name, entry)
        return
    for sub, own in subcases.items():
        merged = entry | own
        for key in ("options", "outputs", "roles"):
            merged[key] = {**entry.get(key, {}), **own.get(key, {})}
        for key in ("inputs", "params"):
            merged[key] = [*entry.get(key, []), *own.get(key, [])]
        if not merged.get("reference"):
            yield _case(folder, name, f"{name}:{sub}", merged)


def _case(folder: Path, file: str, name: str, entry: dict[str, Any]) -> Case:
    options = dict(entry.get("options", {}))
    if "folder" in options:
        options["folder"] = str(folder / options["folder"])
    return Case(
        slug=folder.name,
        name=name,
        file=folder / file,
        kind=entry["kind"],
        options=options,
        inputs=tuple(dict.fromkeys(entry.get("inputs", []))),
        params=tuple(dict.fromkeys(entry.get("params", []))),
        outputs=entry.get("outputs", {}),
        roles=entry.get("roles", {}),
        licence=entry.get("licence", ""),
    )

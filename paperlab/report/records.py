"""What the programs wrote under results/: claims of the papers, benchmarks, the fault campaign."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperlab.report import reading
from paperlab.tables import ROOT, TableError, first_line, rooms


@dataclass
class Paper:
    """The recorded claims of one paper, with the pictures beside them."""

    slug: str
    title: str
    claims: list[dict[str, Any]]
    pictures: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def held(self) -> int:
        return sum(claim.get("passed") is True for claim in self.claims)


@dataclass
class Document:
    """One JSON file that a program wrote (a benchmark's, the fault campaign's)."""

    file: Path
    content: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    def dictionaries(self, name: str) -> list[dict[str, Any]]:
        """The list of objects that stands under a name; what is none is left out."""
        value = self.content.get(name)
        return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

    def dictionary(self, name: str) -> dict[str, Any]:
        """The object that stands under a name; {} where there is none."""
        value = self.content.get(name)
        return value if isinstance(value, dict) else {}


def papers(results: Path) -> list[Paper]:
    """Every paper whose claims are recorded in results/claims/, by slug."""
    found = []
    for file in reading.listed(results / "claims"):
        if file.suffix != ".json":
            continue
        document, problem = reading.read_object(file)
        listed = document.get("claims")
        claims = [claim for claim in listed if isinstance(claim, dict)] if isinstance(listed, list) else []
        if not problem and not isinstance(listed, list):
            problem = f"{file.name} lists no claims"
        pictures = {
            f"{file.stem}/{path.name}": path
            for path in reading.listed(file.with_suffix(""))
            if path.suffix in (".png", ".svg")
        }
        found.append(Paper(file.stem, title(file.stem), claims, pictures, [problem] if problem else []))
    return found


def title(slug: str) -> str:
    """The title of a paper from its room; its slug where it has none."""
    for name, room in rooms(ROOT):
        if name == slug:
            try:
                return first_line(room / "__init__.py")
            except TableError:
                break
    return slug


def benches(results: Path) -> list[Document]:
    """Every benchmark document in results/bench/."""
    return [document(file) for file in reading.listed(results / "bench") if file.suffix == ".json"]


def faults(results: Path) -> Document | None:
    """The record of the fault campaign; None where there is none."""
    file = results / "faults.json"
    return document(file) if file.exists() else None


def document(file: Path) -> Document:
    """One JSON file."""
    content, problem = reading.read_object(file)
    return Document(file, content, [problem] if problem else [])

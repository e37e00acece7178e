"""The rules of the house, read from the tree: who may import whom, and what must never be."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from paperlab.config import load_experiment, resolve

ROOT = Path(__file__).parents[1]

# Imports point down this list or stay on their line, never up. `training` stands aside: see FLOOR_ONLY.
FLOORS = (
    {"kernels_pallas"},
    {
        "checks",
        "commandline",
        "config",
        "devices",
        "discovery",
        "disk",
        "distributed",
        "errors",
        "figures",
        "heap",
        "limits",
        "lock",
        "overrides",
        "provenance",
        "workdir",
    },
    {"recurrence"},
    {"layers", "data", "training"},
    {"mixers"},
    {"depth"},
    {"tasks", "models", "interop", "decoding"},
    {"loading", "evidence"},
    {"papers"},
    {"run", "claims", "report", "bench", "generate", "tables"},
)
# The trainer knows the protocol of a task and no part of what is trained.
FLOOR_ONLY = {"training": {"training", *FLOORS[1]}}
KERNELS_MAY_IMPORT = {"jax", "jaxlib", "numpy", "kernels_pallas"} | set(sys.stdlib_module_names)

LONGEST_FILE, LONGEST_FUNCTION = 500, 90
HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("debian", "org"))]
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|Not" r"ImplementedError)\b")
UNSAFE = re.compile(r"\bpickle\b|allow_pickle=True|(?<![.\w])eval\(|shell=True")


def sources(*folders: str) -> list[Path]:
    """The Python files in these folders of the repository."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def tracked() -> list[Path]:
    """The files of the repository: those that git knows or, outside git, all but hidden and generated ones."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [file for name in listed.stdout.split("\0") if name and (file := ROOT / name).is_file()]
    skip = {"runs", "build", "dist", "__pycache__", "paperlab.egg-info"}
    names = (file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file())
    return [ROOT / name for name in names if not any(part in skip or part[0] == "." for part in name.parts[:-1])]


def imported(file: Path, root: Path) -> Iterator[str]:
    """Absolute dotted names of all that a file imports, inside functions and under TYPE_CHECKING too."""
    package = file.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """`paperlab.mixers.gla` -> "mixers"; "" for the package itself and for what is not of this house."""
    top, *rest = name.split(".")
    if top == "kernels_pallas":
        return top
    return rest[0] if top == "paperlab" and rest else ""


def floor(name: str) -> int:
    """The floor of a room; a single file that is not listed stands on top, with the front door."""
    for number, rooms in enumerate(FLOORS):
        if name in rooms:
            return number
    return len(FLOORS) - 1


def wrong_imports(root: Path) -> list[str]:
    """Every import that points up, from paper to paper, out of the kernels' allowance, or out of the trainer's."""
    wrong = []
    for file in sorted([*root.glob("paperlab/**/*.py"), *root.glob("kernels_pallas/**/*.py")]):
        parts = file.relative_to(root).with_suffix("").parts
        here = "kernels_pallas" if parts[0] == "kernels_pallas" else parts[1]
        if here == "__init__":
            continue
        for name in imported(file, root):
            there, where = room(name), f"{file.relative_to(root)} imports {name}"
            if here == "kernels_pallas":
                wrong += [where] if name.split(".")[0] not in KERNELS_MAY_IMPORT else []
            elif here == "papers" and there == "papers":
                wrong += [where] if len(parts) > 3 and name.split(".")[2:3] not in ([parts[2]], []) else []
            elif there and (floor(there) > floor(here) or there not in FLOOR_ONLY.get(here, {there})):
                wrong.append(where)
    return wrong


def test_imports_point_down():
    assert wrong_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("kernels_pallas/gla.py", "import flax"),
        ("kernels_pallas/gla.py", "from paperlab.recurrence import linear"),
        ("paperlab/recurrence/linear.py", "from paperlab.mixers import gla"),
        ("paperlab/mixers/gla.py", "from paperlab.papers.gla import model"),
        ("paperlab/mixers/gla.py", "def f():\n    from ..papers.gla import model"),
        ("paperlab/papers/gla/model.py", "from paperlab.papers.hgrn import model"),
        ("paperlab/papers/gla/model.py", "from ..hgrn import model"),
        ("paperlab/papers/gla/claims.py", "from paperlab.run import main"),
        ("paperlab/training/loop.py", "from paperlab.tasks import language_modelling"),
        ("paperlab/training/loop.py", "import paperlab.data"),
        ("paperlab/config.py", "import paperlab.models.lm"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(wrong_imports(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("kernels_pallas/gla.py", "import functools, jax\nfrom kernels_pallas import compat"),
        ("paperlab/mixers/gla.py", "from kernels_pallas import gla\nfrom paperlab.layers.norms import RMSNorm"),
        ("paperlab/papers/gla/model.py", "from paperlab.papers.gla.gates import gate\nfrom . import gates"),
        ("paperlab/run.py", "from paperlab.papers.gla import model\nfrom paperlab import workdir"),
    ],
)
def test_a_right_import_is_let_through(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert wrong_imports(tmp_path) == []


def test_every_package_of_paperlab_has_a_floor():
    known = set().union(*FLOORS)
    packages = {init.parent.name for init in (ROOT / "paperlab").glob("*/__init__.py")}
    assert packages <= known, "say in FLOORS where the new room stands"


def test_files_and_functions_fit_in_one_reading():
    long = []
    for file in sources("paperlab", "kernels_pallas", "experiments", "tests", "scripts"):
        text = file.read_text()
        long += [f"{file}: {count} lines"] if (count := text.count("\n")) > LONGEST_FILE else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > LONGEST_FUNCTION:
                long.append(f"{file}:{node.lineno}: {node.name}")
    assert long == []


def test_every_module_says_what_it_is_for():
    mute = [file for file in sources("paperlab", "kernels_pallas", "experiments") if not _documented(file)]
    assert mute == []


def _documented(file: Path) -> bool:
    tree = ast.parse(file.read_text())
    return bool(ast.get_docstring(tree)) or not tree.body


def test_nothing_unfinished_and_nothing_unsafe():
    found = []
    for file in sources("paperlab", "kernels_pallas", "experiments", "scripts"):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if UNFINISHED.search(line) or UNSAFE.search(line):
                found.append(f"{file}:{number}: {line.strip()}")
    assert found == []
    assert not list((ROOT / "paperlab").rglob("utils.py"))


def test_no_file_names_a_registry_host():
    files = [file for file in tracked() if file.suffix not in {".npz", ".png", ".npy"}]
    assert len(files) > 20
    assert [f"{file}: {host}" for file in files for host in HOSTS if host in file.read_text(errors="replace")] == []
    assert ROOT / "uv.lock" not in files


def test_the_lock_pins_every_dependency_with_hashes():
    entries = re.split(r"\n(?=[A-Za-z])", (ROOT / "requirements.lock").read_text().strip())
    assert all(re.match(r"[\w.-]+==\S+", entry) and "--hash=sha256:" in entry for entry in entries)
    pinned = {entry.split("==")[0].lower() for entry in entries}
    declared = re.findall(r'^    "([\w.-]+)>=', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(declared) > 10
    assert {name.lower() for name in declared} <= pinned, "run: make lock"


def test_the_tables_are_fresh():
    from paperlab import tables

    assert tables.main(["--check"]) == 0, "run: make tables"


def test_links_in_the_pages_lead_somewhere():
    dead = []
    for page in (file for file in tracked() if file.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []


def _experiments() -> list[str]:
    return sorted(file.name for file in (ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("name", _experiments())
def test_every_variant_of_every_experiment_resolves(name, monkeypatch):
    from paperlab.tables import variants

    monkeypatch.chdir(ROOT)
    for variant in ["", *variants(ROOT / "experiments" / name)]:
        config = resolve(load_experiment(f"experiments/{name}:{variant}" if variant else f"experiments/{name}"))
        assert isinstance(config, ConfigDict)
        assert config.slug == name.removesuffix(".py")
        assert config.variant == variant


def _rooms() -> list[str]:
    return sorted(init.parent.name for init in (ROOT / "paperlab" / "papers").glob("*/__init__.py"))


@pytest.mark.parametrize("slug", _rooms())
def test_every_paper_has_its_furniture(slug):
    for name in (f"paperlab/papers/{slug}/README.md", f"paperlab/papers/{slug}/claims.py", f"experiments/{slug}.py"):
        assert (ROOT / name).is_file(), name
    assert list((ROOT / "tests").rglob(f"test_{slug}*.py")), f"no tests named test_{slug}*.py"
    importlib.import_module(f"paperlab.papers.{slug}.claims")


def test_the_front_door_opens_quickly():
    heavy = {"orbax", "grain", "matplotlib", "pyarrow", "tokenizers"}
    code = "import sys, paperlab, paperlab.run; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert heavy & set(shown.stdout.split()) == set()

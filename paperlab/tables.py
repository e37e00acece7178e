"""Writes the tables of papers, claims and parts into README.md, WORKSPACE.md and the papers' READMEs (`make tables`).

    python -m paperlab.tables           write them
    python -m paperlab.tables --check   exit 1, naming the stale ones

Everything in them is read from the tree, nothing is imported: the first docstring line and arXiv id of every
paperlab/papers/<slug>/__init__.py, the `VARIANTS` of experiments/<slug>.py, results/claims/<slug>.json, and the first
docstring line of every mixer, model and task. A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; NAME is
papers, claims, parts, or claims_<slug> for the claims of one paper.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "WORKSPACE.md")
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table:\2 -->)", re.DOTALL)
ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")


class TableError(ValueError):
    """A file from which the tables are made cannot be read as such; one line that names it."""


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Writes or checks the tables of every page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m paperlab.tables", description="Write the generated tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a table is stale")
    check = parser.parse_args(argv).check
    try:
        pages = [*PAGES, *(str(p.relative_to(root)) for p in sorted(root.glob("paperlab/papers/*/README.md")))]
        fresh = {page: filled((root / page).read_text(), root) for page in pages}
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = [page for page in pages if fresh[page] != (root / page).read_text()]
    for page in [] if check else stale:
        (root / page).write_text(fresh[page])
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}{' (run: make tables)' if check else ''}")
    return int(check and bool(stale))


def filled(text: str, root: Path) -> str:
    """The page with the table between each pair of markers made anew."""

    def table(match: re.Match[str]) -> str:
        name, slug = match[2], match[2].removeprefix("claims_")
        if name in TABLES:
            text = TABLES[name](root)
        elif slug in (known for known, _ in rooms(root)):
            text = claims_of(root, slug)
        else:
            raise TableError(f"there is no table {name!r}; there are {', '.join(TABLES)} and claims_<slug>")
        return f"{match[1]}{text}{match[3]}"

    return MARKED.sub(table, text)


def papers(root: Path) -> str:
    """One line a paper: what it is, how to run it, how its claims stand."""
    rows = []
    for slug, room in rooms(root):
        title, arxiv = first_line(room / "__init__.py"), ARXIV.search(docstring(room / "__init__.py"))
        title = re.sub(r"\s*\(arXiv:?\s*[\d.]+\)|,?\s*arXiv:?\s*[\d.]+", "", title)
        claims = [claim for claim in read_claims(root, slug) if "passed" in claim]
        passed = sum(bool(claim["passed"]) for claim in claims)
        rows.append(
            (
                f"[{title}](paperlab/papers/{slug}/README.md)",
                arxiv[1] if arxiv else "-",
                f"`experiments/{slug}.py`",
                " ".join(f"`{name}`" for name in variants(root / "experiments" / f"{slug}.py")) or "-",
                f"{passed} of {len(claims)} hold" if claims else "not run yet",
            )
        )
    return markdown(("Paper", "arXiv", "Experiment", "Variants", "Claims"), rows, "No papers yet.")


CLAIM_HEADER = ("Claim", "What is claimed", "Measured", "Baseline", "Threshold", "", "Where, when")


def claims(root: Path) -> str:
    """One line a recorded claim of every paper, failed ones included."""
    rows = [(slug, *row) for slug, _ in rooms(root) for row in claim_rows(root, slug)]
    return markdown(("Paper", *CLAIM_HEADER), rows, "No claims recorded yet: `make claims`.")


def claims_of(root: Path, slug: str) -> str:
    """One line a recorded claim of one paper."""
    return markdown(CLAIM_HEADER, claim_rows(root, slug), f"None recorded yet: `python -m paperlab.claims {slug}`.")


def claim_rows(root: Path, slug: str) -> list[tuple[str, ...]]:
    """The cells of CLAIM_HEADER for every record of a paper."""
    rows = []
    for claim in read_claims(root, slug):
        verdict = "holds" if claim.get("passed") else "**fails**"
        numbers = [shown(claim.get(name)) for name in ("value", "baseline", "threshold")]
        where = f"{shown(claim.get('device'))}, {str(claim.get('date', '-'))[:10]}"
        rows.append((shown(claim.get("id")), shown(claim.get("statement")), *numbers, verdict, where))
    return rows


def parts(root: Path) -> str:
    """One line a mixer, model and task, found by file name."""
    rows = []
    for kind, maker in (("mixers", "Mixer"), ("models", "make"), ("tasks", "make")):
        for file in sorted((root / "paperlab" / kind).glob("[a-z]*.py")):
            if any(getattr(node, "name", "") == maker for node in parsed(file).body):
                rows.append((kind.removesuffix("s"), f"`{file.stem}`", first_line(file)))
    return markdown(("Kind", "Name", "What it is"), rows, "None yet.")


TABLES: dict[str, Callable[[Path], str]] = {"papers": papers, "claims": claims, "parts": parts}


def rooms(root: Path) -> Iterator[tuple[str, Path]]:
    """(slug, folder) of every paper, sorted."""
    for init in sorted((root / "paperlab" / "papers").glob("[a-z]*/__init__.py")):
        yield init.parent.name, init.parent


def docstring(file: Path) -> str:
    """The module docstring of a file, without importing it."""
    text = ast.get_docstring(parsed(file))
    if not text:
        raise TableError(f"{file} has no docstring; its first line goes into the tables")
    return text


def first_line(file: Path) -> str:
    """The first sentence-line of a module's docstring."""
    return docstring(file).splitlines()[0].rstrip(".")


def parsed(file: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    try:
        return ast.parse(file.read_text())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise TableError(f"{file} cannot be read: {error}") from error


def variants(file: Path) -> list[str]:
    """The names in an experiment file's `VARIANTS = {...}`, without the default's empty one."""
    if not file.is_file():
        return []
    for node in parsed(file).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "VARIANTS" for target in targets):
            keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
            return [key for key in keys if isinstance(key, str) and key]
    return []


def read_claims(root: Path, slug: str) -> list[dict[str, Any]]:
    """The recorded claims of one paper; none where they have not been run."""
    file = root / "results" / "claims" / f"{slug}.json"
    if not file.is_file():
        return []
    try:
        return list(json.loads(file.read_text())["claims"])
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{file} is no claims record: {error!r}") from error


def shown(value: Any) -> str:
    """A value as the text of one cell: numbers to four digits, nothing as a dash."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return "-" if value is None or value == "" else str(value)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], otherwise: str) -> str:
    """A Markdown table, or the sentence `otherwise` where there are no rows."""
    if not rows:
        return f"{otherwise}\n"
    lines = (header, ["---"] * len(header), *rows)
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


if __name__ == "__main__":
    sys.exit(main())

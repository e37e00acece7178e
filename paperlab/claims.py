"""Runs the claims of a paper and records what came out, whatever it was.

    python -m paperlab.claims SLUG [SLUG ...] [--only=ID ...] [--root=results/claims]
    python -m paperlab.claims --all

Writes `results/claims/SLUG.json` after every claim (single records are replaced, the others kept) and plots beside it.
A claim that fails stays in the table as failed; one whose run raises is recorded as failed with the error in its details.
Exit status: 0 when everything asked for was run, whether or not the claims held; 2 for an unknown paper or claim.
"""

import datetime
import importlib
import importlib.util
import json
import math
import pkgutil
import sys
import time
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from paperlab import provenance
from paperlab.commandline import Parser, path_text, tell
from paperlab.errors import ConfigError
from paperlab.evidence import Claim, Laboratory, Outcome
from paperlab.workdir import write_atomically


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, runs what it asks for, and returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        flags = _parser().read(argv)
        if flags.all and flags.slugs:
            raise ConfigError(f"--all runs every paper: leave out {' '.join(flags.slugs)}, or --all")
        slugs = papers_with_claims() if flags.all else flags.slugs
        if not slugs:
            raise ConfigError(f"name a paper: {', '.join(papers_with_claims())} (or --all)")
        chosen = [(slug, select(slug, flags.only)) for slug in slugs]
        for slug in slugs:
            recorded(flags.root / f"{slug}.json")
        for slug, claims in chosen:
            run_paper(slug, claims, flags.root)
    except Exception as error:
        if "--debug" in argv:
            raise
        return tell(error)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m paperlab.claims", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("slugs", nargs="*", metavar="SLUG")
    parser.add_argument("--all", action="store_true", help="every paper that has claims")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ID", help="a claim's id, or the part before its dot"
    )
    parser.add_argument("--root", type=lambda text: Path(path_text(text)), default=Path("results/claims"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def papers_with_claims() -> list[str]:
    """Slugs of the rooms in `paperlab/papers/` that have a `claims.py`, sorted."""
    package = importlib.import_module("paperlab.papers")
    slugs = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    return [slug for slug in slugs if importlib.util.find_spec(f"paperlab.papers.{slug}.claims") is not None]


def select(slug: str, only: list[str]) -> list[Claim]:
    """The claims of a paper, or those whose id (or the part of it before the dot) is in `only`."""
    known = papers_with_claims()
    if slug not in known:
        near = get_close_matches(slug, known, n=1)
        raise ConfigError(
            f"no paper {slug!r} has claims: " + (f"did you mean {near[0]!r}?" if near else ", ".join(known))
        )
    claims = importlib.import_module(f"paperlab.papers.{slug}.claims").CLAIMS
    ids = {claim.id for claim in claims} | {claim.id.split(".")[0] for claim in claims}
    for name in only:
        if name not in ids:
            raise ConfigError(f"{slug} has no claim {name!r}; there are {', '.join(claim.id for claim in claims)}")
    return [claim for claim in claims if not only or claim.id in only or claim.id.split(".")[0] in only]


def run_paper(slug: str, claims: list[Claim], root: Path) -> list[dict[str, Any]]:
    """Runs claims one after another, records each as soon as it is done, and prints a line for it."""
    from paperlab import devices

    devices.keep_compiled_programs()
    print(devices.describe(), flush=True)
    plots = root / slug
    try:
        plots.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--root={root}: cannot write to {plots}: {error.strerror or error}") from error
    laboratory, version = Laboratory(plots), provenance.git_version()
    records = []
    for claim in claims:
        device = provenance.device()
        if claim.device not in device:
            print(f"  {slug} {claim.id}: needs {claim.device}, here is {device}; not run", flush=True)
            continue
        record = run_claim(claim, laboratory, device, version)
        records.append(record)
        save(slug, record, root / f"{slug}.json", [c.id for c in select(slug, [])])
        mark = "holds " if record["passed"] else "FAILS "
        value, baseline = ("-" if record[name] is None else f"{record[name]:.4g}" for name in ("value", "baseline"))
        against = f"{record['threshold']}" + ("" if baseline == "-" else f", baseline {baseline}")
        print(f"  {mark} {claim.id}: {value} ({against}), {record['seconds']:.0f} s", flush=True)
    return records


def run_claim(claim: Claim, laboratory: Laboratory, device: str, version: tuple[str, bool]) -> dict[str, Any]:
    """One record; an exception makes a failed one. `version` is that of the code when it was loaded: (commit, dirty)."""
    start = time.perf_counter()
    try:
        outcome = claim.run(laboratory)
        passed = claim.threshold.holds(outcome.value, outcome.baseline)
    except Exception as error:
        traceback.print_exc()
        outcome, passed = Outcome(float("nan"), details={"error": f"{type(error).__name__}: {error}"}), False
    commit, dirty = version
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "value": _number(outcome.value),
        "baseline": None if outcome.baseline is None else _number(outcome.baseline),
        "threshold": str(claim.threshold),
        "passed": passed,
        "per_seed": outcome.per_seed,
        "details": outcome.details,
        "seconds": round(time.perf_counter() - start, 1),
        "device": device,
        "commit": commit,
        "dirty": dirty,
        "date": datetime.date.today().isoformat(),
    }


def save(slug: str, record: dict[str, Any], file: Path, order: list[str]) -> None:
    """Puts one record into the file in place of the one with its id and device; the others are kept, dead ids dropped."""
    kept = [other for other in recorded(file) if other["id"] in order and other["id"] != record["id"]]
    records = sorted([*kept, record], key=lambda r: order.index(r["id"]))
    write_atomically(file, json.dumps({"slug": slug, "claims": records}, indent=1) + "\n")


def recorded(file: Path) -> list[dict[str, Any]]:
    """The records in a file, none where it is not there. Raises ConfigError where it is damaged."""
    try:
        claims = json.loads(file.read_text(encoding="utf-8"))["claims"]
        if not all(isinstance(record["id"], str) for record in claims):
            raise TypeError("an id is no text")
        return claims
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{file} holds no records of claims ({reason}): mend it, or move it away") from None


def _number(value: float) -> float | None:
    """JSON has no NaN or infinity: they become null."""
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())

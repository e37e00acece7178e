"""Known answers from the command line: python -m tests.golden [--root=DIR] [--slug=S]

Every case goes through tests/golden/adapters/<slug>.py, and every output is compared. Without --root the shipped answers are
checked. A folder without an adapter fails if it is asked for by --slug or if the paper has a room; otherwise it is only named.
"""

import argparse
import sys
from pathlib import Path

from tests.golden.cases import SHIPPED, read, slugs
from tests.golden.compare import adapter, check

PAPERS = SHIPPED.parents[1] / "paperlab" / "papers"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Checks known answers.")
    parser.add_argument("--root", type=Path, default=SHIPPED, help="folder with one folder a paper (default: shipped)")
    parser.add_argument("--slug", help="only this paper")
    options = parser.parse_args(arguments)
    known = slugs(options.root)
    if not known or (options.slug is not None and options.slug not in known):
        print(f"{options.root} has no known answers" + (f" of {options.slug}" if options.slug else ""), file=sys.stderr)
        return 2
    cases = failures = 0
    for slug in [options.slug] if options.slug else known:
        done, failed = run_folder(options.root, slug, wanted=options.slug is not None or (PAPERS / slug).is_dir())
        cases, failures = cases + done, failures + failed
    print(f"{cases} cases, {failures} failures")
    return 1 if failures else 0


def run_folder(root: Path, slug: str, *, wanted: bool) -> tuple[int, int]:
    """Runs one folder; returns (cases run, failures)."""
    run = adapter(slug)
    if run is None:
        print(f"{'FAIL' if wanted else 'skip'} {slug}: no adapter tests/golden/adapters/{slug}.py")
        return 0, int(wanted)
    failures = 0
    found = read(root, slug)
    for case in found:
        problems = check(case, run)
        failures += bool(problems)
        print(f"{'FAIL' if problems else 'ok  '} {slug}/{case.name} ({case.kind})")
        for problem in problems:
            print(f"       {problem}")
    return len(found), failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

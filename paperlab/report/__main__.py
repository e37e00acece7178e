"""One static HTML page of runs, claims, benchmarks and the fault campaign.

    python -m paperlab.report [WORKDIR ...] [--runs=runs] [--results=results] [--out=report.html] [--open]

Without WORKDIR every run at or below --runs is shown. The page loads nothing from anywhere, so it can be mailed or kept. The
same files give the same page, but for its date (SOURCE_DATE_EPOCH sets it).

Exit status: 0 written, 1 could not be written, 2 asked for something that is not there.
"""

import argparse
import datetime
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from paperlab import provenance
from paperlab.errors import ConfigError
from paperlab.report import reading, runs
from paperlab.report.page import page
from paperlab.workdir import write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m paperlab.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("workdirs", nargs="*", type=Path, metavar="WORKDIR")
    parser.add_argument("--runs", type=Path, help="folder that is searched for runs (default: runs)")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    flags = parser.parse_args(argv)
    try:
        text, count = build(flags.workdirs, flags.runs, flags.results, flags.out)
        _write(flags.out, text)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out: cannot write {flags.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{flags.out}: {count} {'run' if count == 1 else 'runs'}, {len(text.encode()) / 1e6:.1f} MB")
    if flags.open:
        webbrowser.open(flags.out.resolve().as_uri())
    return 0


def build(workdirs: Sequence[Path], root: Path | None, results: Path, out: Path) -> tuple[str, int]:
    """(the page, how many runs are on it).

    Raises:
      ConfigError: a folder that was named is not there or holds no run.
    """
    if root is not None and not reading.is_folder(root):
        raise ConfigError(f"--runs: there is no folder {root}")
    if not reading.is_folder(results) and results != Path("results"):
        raise ConfigError(f"--results: there is no folder {results}")
    for path in workdirs:
        if not reading.is_folder(path):
            raise ConfigError(f"{path} is no folder; name the work directory of a run, or a folder that holds some")
        if not runs.find(path):
            raise ConfigError(f"{path} holds no run: nothing in it has a config.json or a metrics.jsonl")
    roots = [*workdirs, *([root] if root is not None else [] if workdirs else [Path("runs")])]
    found = runs.collect(roots)
    text = page(found, results, made=_made(), out=out, asked=", ".join(map(str, roots)))
    return text, len(found)


def _made() -> str:
    """The date, and the version of the code."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    zone = datetime.UTC
    now = datetime.datetime.fromtimestamp(int(epoch), zone) if epoch.isdecimal() else datetime.datetime.now(zone)
    commit, dirty = provenance.git_version()
    version = f", at {commit[:10]}{' with uncommitted changes' if dirty else ''}" if commit else ""
    return f"Made {now:%Y-%m-%d %H:%M} UTC{version}."


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)


if __name__ == "__main__":
    sys.exit(main())

"""Measures speed and records it.

    python -m paperlab.bench [NAME ...] [--json=FILE] [--quick] [--list] [--tune] [--config=FILE[:VARIANT]] [--root=results/bench]

Without names all are run. Each writes results/bench/NAME.json; with --json=FILE all that were asked for go into that one file
instead. --quick takes the smallest sizes, only to see that everything runs: its numbers mean nothing, aims are left out, and
nothing is written without --json. --tune keeps what `recurrence` found fastest as the table behind `impl="auto"`. Exit status:
0 when everything ran, whether or not the aims were met; 1 when a benchmark failed; 2 for an unknown name.
"""

import argparse
import importlib
import pkgutil
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from paperlab import bench, provenance
from paperlab.bench import record, show
from paperlab.errors import ConfigError
from paperlab.heap import keep_freed_memory


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, runs what it asks for, and returns the exit status."""
    flags = _flags(argv)
    try:
        known = benchmarks()
        chosen = {name: find(name, known) for name in dict.fromkeys(flags.names or known)}
        if flags.list:
            for name, module in chosen.items():
                print(f"{name:<12} {summary(module)}")
            return 0
        measure(chosen, flags)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ValueError, RuntimeError, OSError) as error:
        if flags.debug:
            raise
        line = str(error).strip().split("\n")[0]
        print(f"error: {line} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m paperlab.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one file for all rows")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and run none")
    parser.add_argument("--tune", action="store_true", help="keep the fastest implementations as the choice of auto")
    parser.add_argument("--config", default="experiments/gla.py", metavar="FILE[:VARIANT]")
    parser.add_argument("--root", type=Path, default=Path("results/bench"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def benchmarks() -> dict[str, ModuleType]:
    """{name: module} of the files in this folder that have a function `rows`, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_"))
    modules = {name: importlib.import_module(f"paperlab.bench.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "rows")}


def find(name: str, known: dict[str, ModuleType]) -> ModuleType:
    """The benchmark of that name. Raises ConfigError that names the nearest one."""
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"no benchmark is called {name!r}: {hint}")
    return known[name]


def summary(module: ModuleType) -> str:
    """The first line of its docstring."""
    return (module.__doc__ or "").strip().split("\n")[0]


def measure(chosen: dict[str, ModuleType], flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the benchmarks one after another, prints and records each as soon as it is done; returns the documents."""
    from paperlab import devices

    options = record.Options(quick=flags.quick, config=flags.config, tune=flags.tune)
    version = provenance.git_version()
    devices.keep_compiled_programs()
    print(devices.describe(), flush=True)
    documents: list[dict[str, Any]] = []
    all_rows: list[dict[str, Any]] = []
    all_aims: list[dict[str, Any]] = []
    for name, module in chosen.items():
        rows = []
        for row in module.rows(options):
            rows.append(row)
            print(f"  {name}: {', '.join(f'{key} {value}' for key, value in row.case.items())}", flush=True)
        found = [record.row_json(name, row) for row in rows]
        held = (record.aim_json(name, aim, rows) for aim in getattr(module, "AIMS", ()))
        aims = [] if flags.quick else [aim for aim in held if aim is not None]
        show.show(f"{name}: {summary(module)}", found, aims)
        all_rows, all_aims = all_rows + found, all_aims + aims
        if flags.json:
            made = record.document(", ".join(chosen), all_rows, all_aims, version)
            record.write(flags.json, made)
        else:
            made = record.document(f"{name}: {summary(module)}", found, aims, version)
            if not flags.quick:
                record.write(flags.root / f"{name}.json", made)
        documents.append(made)
    return documents


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())

"""Measures every operation on the device at hand, beside its floors and its peers, and records it.

    python -m kernels_pallas.bench [OP ...] [--peers] [--wheels=FOLDER] [--torch=PYTHON] [--json=FILE] [--quick]
                                   [--only-check] [--resume] [--seconds=N]

Writes results/bench/kernels-DEVICE.json after every row, or FILE. --peers adds the kernels of other packages; those that need
PyTorch run in a process of their own. --quick takes the small cases and a few rounds, only to see that everything runs: its
numbers mean nothing, and nothing is written without --json. --only-check compares the small cases with float64 and times nothing.
--resume keeps the rows that are in the file; --seconds starts no new case after so long. Exit status: 0; 1 where an implementation
of this package was wrong or failed; 2 for a wrong command line; 3 where time ran out with cases left, whatever the rest was.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.55")  # the rest of a GPU is for the other process

import jax

from kernels_pallas import platforms
from kernels_pallas.bench import device, measure, record, timing, wheels
from kernels_pallas.bench.torch_side import TorchPeers
from kernels_pallas.op import Case, Op
from kernels_pallas.registry import MODULES, operation

OWN = ("kernel", "kernel step by step", "chunked", "lax.scan")
# What is no fault: too little memory, no gradient, a kernel that says what it does not take.
REFUSAL = re.compile(r"^needs \d|^has no gradients$|impl='(pallas|interpret)'")


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, measures, and returns the exit status."""
    flags = parsed(argv)
    try:
        ops = chosen(flags.ops)
        site = wheels.install(flags.wheels) if flags.wheels else ""
        if site and site not in sys.path:
            sys.path.append(site)
        return run(ops, flags, site)
    except (ValueError, RuntimeError, OSError) as error:
        if flags.debug:
            raise
        print(f"error: {str(error).strip().splitlines()[0]} (--debug shows where)", file=sys.stderr)
        return 2


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels_pallas.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--peers", action="store_true", help="kernels of other packages too")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of peers to install for this call")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="the interpreter that has PyTorch")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="small cases, to see that it runs")
    parser.add_argument("--only-check", action="store_true", help="errors of the small cases, no times")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the file")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="N")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def chosen(names: list[str]) -> list[Op]:
    """The operations of these names, all without one. Raises ValueError that names the nearest."""
    for name in names:
        if name not in MODULES:
            near = get_close_matches(name, MODULES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(MODULES)}"
            raise ValueError(f"no operation is called {name!r}: {hint}")
    return [operation(name) for name in dict.fromkeys(names or MODULES)]


def run(ops: list[Op], flags: argparse.Namespace, site: str) -> int:
    """Measures, prints and records row by row."""
    start = time.monotonic()
    file = flags.json or (
        None if flags.quick or flags.only_check else Path(f"results/bench/kernels-{device.slug()}.json")
    )
    old = record.read_rows(file) if file is not None and flags.resume else []
    rows = [row for row in old if "case" not in row["refused"]]
    done = {record.case_text({"op": row["bench"], **row["case"]}) for row in rows}
    left = [pair for pair in cases(ops, flags) if not finished(pair, done)]
    plan = timing.QUICK if flags.quick else timing.Plan()
    print(announcement(), flush=True)
    with ExitStack() as stack:
        setting = made_setting(flags, plan, site, stack)
        stopped = 0
        for op, case in left:
            if time.monotonic() - start > flags.seconds:
                stopped += 1
                continue
            for row in measured(op, case, setting, flags.only_check):
                rows.append(row)
                print("\n".join(record.lines(row)), flush=True)
            if file is not None:
                record.write(file, record.document(title(flags), setting.ceilings._asdict(), rows))
    if stopped:
        print(f"{stopped} of {len(left)} cases left; go on with --resume", flush=True)
    return 3 if stopped else int(any(faults(row) for row in rows))


def announcement() -> str:
    """The device, and what cannot be measured without another."""
    here = platforms.platform()
    if here in platforms.PLATFORMS:
        return f"{device.kind()}: kernels for {here}"
    return f"{device.kind()}: no GPU or TPU that kernels are for, so that only plain JAX is measured"


def title(flags: argparse.Namespace) -> str:
    """The title of the document."""
    small = " (small cases, to see that it runs; its numbers mean nothing)" if flags.quick else ""
    return f"kernels: operations of kernels_pallas on {device.kind()}{small}"


def cases(ops: list[Op], flags: argparse.Namespace) -> Iterator[tuple[Op, Case]]:
    """What is to be measured: the first case of every operation, then the second of every one, so that little time goes round."""
    listed = {op.name: list(op.small if flags.quick or flags.only_check else op.cases) for op in ops}
    if flags.quick:
        listed = {name: found[:2] for name, found in listed.items()}
    for number in range(max(map(len, listed.values()), default=0)):
        yield from ((op, listed[op.name][number]) for op in ops if number < len(listed[op.name]))


def finished(pair: tuple[Op, Case], done: set[str]) -> bool:
    """Whether the rows of a case are there."""
    op, case = pair
    return all(record.case_text({"op": op.name, **case, "pass": which}) in done for which in measure.PASSES)


def made_setting(flags: argparse.Namespace, plan: timing.Plan, site: str, stack: ExitStack) -> measure.Setting:
    """Ceilings first, then the process for PyTorch."""
    if flags.only_check:
        nothing = device.Ceilings(float("inf"), float("inf"), 0.0)
        return measure.Setting(nothing, plan, narrow=False, most_sets=1)
    found = device.ceilings(plan, quick=flags.quick)
    print(
        f"copy {found.copy / 1e9:.4g} GB/s, matmul {found.matmul / 1e12:.4g} TFLOP/s, a call {found.call_ms:.3g} ms",
        flush=True,
    )
    torch = stack.enter_context(TorchPeers(flags.torch, site)) if flags.peers else None
    return measure.Setting(found, plan, torch, flags.peers, 2 if flags.quick else 8, narrow=not flags.quick)


def measured(op: Op, case: Case, setting: measure.Setting, only_check: bool) -> list[record.Row]:
    """The rows of one case; a case that cannot be drawn or referred to float64 is a row with the reason."""
    try:
        return measure.checked(op, case) if only_check else measure.rows(op, case, setting)
    except (ValueError, RuntimeError, TypeError, jax.errors.JaxRuntimeError) as error:
        refused = {"case": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        nothing: dict[str, Any] = {"ms": {}, "spread": {}, "rounds": 0, "errors": {}, "refused": refused}
        return [{"bench": op.name, "case": dict(case) | {"pass": which}, **nothing} for which in measure.PASSES]


def faults(row: record.Row) -> list[str]:
    """What is wrong with our own implementations: wrong numbers, or failures other than a kernel's own refusal."""
    own = {label: reason for label, reason in row["refused"].items() if label in (*OWN, "interpret", "case")}
    return [f"{label}: {reason}" for label, reason in own.items() if not REFUSAL.search(reason)]


if __name__ == "__main__":
    sys.exit(main())

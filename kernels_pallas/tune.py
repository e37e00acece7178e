"""Measures block sizes of the kernels on the device at hand and keeps the fastest in tuned.json.

    python -m kernels_pallas.tune [OP ...] [--pass=both|forward] [--seconds=N] [--again] [--table=FILE] [--quick]

For every case of every operation, `Op.configs` says what is worth measuring. Each configuration is compared with float64 first;
what is wrong or refused is said and never kept. The table is written after every case, and cases that it has for this kind of
device are left out, so that a call that was cut short can be repeated; --again measures them anew. --quick tries two
configurations of the smallest case, by the interpreter where there is no kernel, and writes nothing without --table: its numbers
mean nothing. Exit status: 0, also where no kernel runs; 1 where no configuration of some case ran; 2 for a wrong command line; 3
where time ran out.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from kernels_pallas import configs, platforms
from kernels_pallas.bench import check, device, measure, record, timing, xla
from kernels_pallas.bench.__main__ import chosen
from kernels_pallas.bench.subject import Subject
from kernels_pallas.bench.torch_process import short
from kernels_pallas.op import Case, Op

PLAN = timing.Plan(rounds=20, seconds=1.0)
Table = dict[str, dict[str, list[dict[str, Any]]]]


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, measures, and returns the exit status."""
    flags = parsed(argv)
    try:
        ops = chosen(flags.ops)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if platforms.platform() not in platforms.PLATFORMS:
        print(f"{device.kind()}: no kernel runs here, there is nothing to tune", flush=True)
        if not flags.quick:
            return 0
    return run(ops, flags)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels_pallas.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--pass", dest="which", choices=measure.PASSES, default="both")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="N")
    parser.add_argument("--again", action="store_true", help="measure cases that the table has")
    parser.add_argument("--table", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    return parser.parse_args(argv)


def run(ops: list[Op], flags: argparse.Namespace) -> int:
    """Tunes case by case and writes the table after each."""
    start = time.monotonic()
    file = flags.table or (None if flags.quick else configs.TABLE)
    table: Table = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}
    rows = table.setdefault(device.kind(), {})
    failed = left = 0
    pairs = [(op, case) for op in ops for case in (op.small[:1] if flags.quick else op.cases)]
    for op, case in pairs:
        key = case | {"pass": flags.which}
        if not flags.again and any(row["case"] == key for row in rows.get(op.name, [])):
            continue
        if time.monotonic() - start > flags.seconds:
            left += 1
            continue
        try:
            row = tuned(op, case, flags.which, quick=flags.quick)
        except (ValueError, RuntimeError, TypeError) as error:
            print(f"  {short(error)}", flush=True)
            row = None
        if row is None:
            failed += 1
            continue
        rows[op.name] = [*(old for old in rows.get(op.name, []) if old["case"] != key), row]
        if file is not None:
            record.write(file, table)
    print(f"{left} cases left; go on with the same command" if left else "every case is in the table", flush=True)
    return 3 if left else int(failed > 0)


def tuned(op: Op, case: Case, which: str, *, quick: bool) -> dict[str, Any] | None:
    """The row of the fastest configuration, and what the default took; None where none ran."""
    here, impl = platforms.platform(), "pallas"
    if here not in platforms.PLATFORMS:
        here, impl = "tpu", "interpret"
    subject = Subject(op, case, most_sets=2 if quick else 8)
    support = op.supports(here, *subject.arrays)
    print(f"{op.name}: {record.case_text(case)}", flush=True)
    if not support:
        print(f"  no kernel: {support.reason}", flush=True)
        return None
    found = list(op.configs(case, here))[: 2 if quick else None]
    samples = measured(subject, found, impl, which, timing.QUICK if quick else PLAN)
    if not samples:
        return None
    times = {label: timing.median(values) for label, values in samples.items()}
    best = min(times, key=lambda label: times[label])
    config = next(config for config in found if str(config) == best)
    for label, value in sorted(times.items(), key=lambda pair: pair[1]):
        print(f"  {value:10.4g} ms  {label}", flush=True)
    row = {"case": case | {"pass": which}, "config": config._asdict(), "ms": times[best]}
    return row | {"default_ms": times.get(str(found[0]))}


def measured(subject: Subject, found: list[Any], impl: str, which: str, plan: timing.Plan) -> timing.Samples:
    """Samples of the configurations whose numbers are right; the others are said."""
    contenders = [_with(subject.op, impl, config) for config in found]
    sifted = measure.sift(contenders, subject, which, check.wanted(subject))
    for label, reason in sifted.refused.items():
        print(f"  {label}: {reason}", flush=True)
    return timing.interleaved(sifted.calls, plan, jax.block_until_ready)


def _with(op: Op, impl: str, config: Any) -> xla.Contender:
    return xla.Contender(str(config), lambda *arrays: op.run(*arrays, impl=impl, config=config))


if __name__ == "__main__":
    sys.exit(main())

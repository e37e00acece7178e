"""One row: a case of an operation forward, or forward with gradients, by everything that can compute it.

floor_ms           what the bytes (or the operations) of the case take at the measured speed of a copy (of a product)
serial_ms          the same call for one sequence, one head and 128 channels: no wider one with as many steps is faster
ratio_to_floor     our time over the floor, ratio_to_serial over serial_ms, ratio_to over every other time of the row
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from kernels_pallas import platforms
from kernels_pallas.bench import check, xla
from kernels_pallas.bench.device import Ceilings
from kernels_pallas.bench.record import Row
from kernels_pallas.bench.subject import Subject
from kernels_pallas.bench.timing import Call, Plan, Samples, interleaved, median, quartiles
from kernels_pallas.bench.torch_process import RefusedError, short
from kernels_pallas.bench.torch_side import TorchPeers
from kernels_pallas.op import Case, Op

PASSES = ("forward", "both")
NARROW = {"B": 1, "H": 1, "G": 1, "D": 128}


class Setting(NamedTuple):
    """What every row is measured with. torch: the other process, or None; foreign: kernels of other packages too."""

    ceilings: Ceilings
    plan: Plan
    torch: TorchPeers | None = None
    foreign: bool = False
    most_sets: int = 8
    narrow: bool = True


def rows(op: Op, case: Case, setting: Setting, passes: tuple[str, ...] = PASSES) -> list[Row]:
    """The rows of a case, one a pass."""
    subject = Subject(op, case, most_sets=setting.most_sets)
    right = check.wanted(subject)
    return [row(subject, which, right, setting) for which in passes]


def row(subject: Subject, which: str, right: check.Wanted, setting: Setting) -> Row:
    """One row."""
    contenders = [*xla.own(subject), *xla.others(subject.op.name, foreign=setting.foreign)]
    found = sift(contenders, subject, which, right)
    samples = interleaved(found.calls, setting.plan, jax.block_until_ready)
    found.calls.clear()
    if setting.torch is not None:
        samples |= _from_torch(setting.torch, subject, which, right, setting.plan, found)
    serial_ms = _serial(subject, which, setting) if setting.narrow else None
    return made(subject, which, samples, found, setting.ceilings, serial_ms)


def checked(op: Op, case: Case) -> list[Row]:
    """The errors of our own implementations in every pass, no times; the TPU kernel by its interpreter where there is no kernel."""
    subject = Subject(op, case, most_sets=1)
    right = check.wanted(subject)
    contenders = xla.own(subject)
    if platforms.platform() not in platforms.PLATFORMS:
        contenders.insert(0, xla.implementation(op, "interpret", "interpret"))
    rows = []
    for which in PASSES:
        found = sift(contenders, subject, which, right)
        told: Row = {"errors": found.errors, "refused": found.refused}
        rows.append(
            {"bench": op.name, "case": subject.case | {"pass": which}, "ms": {}, "spread": {}, "rounds": 0, **told}
        )
    return rows


class Sifted(NamedTuple):
    """calls: ready to be timed, of those whose numbers are right; errors: None for another function; refused: reasons."""

    calls: dict[str, Call]
    errors: dict[str, float | None]
    refused: dict[str, str]


def sift(contenders: list[xla.Contender], subject: Subject, which: str, right: check.Wanted) -> Sifted:
    """Compiles the contenders, several at a time, and compares their numbers with float64."""

    def attempt(contender: xla.Contender) -> xla.Program | Exception:
        try:
            return xla.compiled(contender, subject.arrays, which)
        except Exception as error:
            return error

    found = Sifted({}, {}, {})
    with ThreadPoolExecutor(max_workers=8) as pool:
        programs = list(pool.map(attempt, contenders))
    for (label, *_), program in zip(contenders, programs, strict=True):
        try:
            if isinstance(program, Exception):
                raise program
            _admit(label, program, subject, which, right, found)
        except Exception as error:
            found.refused[label] = short(error)
            found.calls.pop(label, None)
    return found


def _admit(label: str, program: xla.Program, subject: Subject, which: str, right: check.Wanted, found: Sifted) -> None:
    if program.contender.same:
        found.errors[label] = wrong = _worst(*xla.evaluate(program, subject, gradients=which == "both"), right)
        if wrong > check.limit(subject.case):
            raise RefusedError(f"wrong: relative error {wrong:.2g} against float64")
    else:
        found.errors[label] = None
    found.calls[label] = xla.calls(program, subject, which)
    jax.block_until_ready(found.calls[label](0))


def _worst(results: list[Any], gradients: list[Any], right: check.Wanted) -> float:
    """The worst relative error of results, and of gradients where there are some."""
    return max(check.results_error(results, right), check.gradients_error(gradients, right) if gradients else 0.0)


def _from_torch(
    torch: TorchPeers, subject: Subject, which: str, right: check.Wanted, plan: Plan, found: Sifted
) -> Samples:
    samples: Samples = {}
    for label, same in torch.labels(subject.op.name):
        told = torch.measure(subject, label, which, plan)
        if "refused" in told:
            found.refused[label] = told["refused"]
            continue
        found.errors[label] = wrong = _worst(told["results"], told["gradients"], right) if same else None
        if wrong is not None and wrong > check.limit(subject.case):
            found.refused[label] = f"wrong: relative error {wrong:.2g} against float64"
            continue
        samples[label] = told["ms"]
    return samples


def _serial(subject: Subject, which: str, setting: Setting) -> float | None:
    """The time of the first of our implementations at width one; None where it does not run."""
    case = subject.case | {n: min(subject.case[n], m) for n, m in NARROW.items() if n in subject.case}
    narrow = Subject(subject.op, case, most_sets=1)
    try:
        program = xla.compiled(xla.own(narrow)[0], narrow.arrays, which)
        samples = interleaved({"": xla.calls(program, narrow, which)}, setting.plan, jax.block_until_ready)
    except Exception:
        return None
    return median(samples[""])


def made(
    subject: Subject,
    which: str,
    samples: Samples,
    sifted: Sifted,
    ceilings: Ceilings,
    serial_ms: float | None,
) -> Row:
    """The row of what was found."""
    times = {label: median(values) for label, values in samples.items()}
    floor = subject.op.floor(subject.case, which)
    floor_ms = 1e3 * max(floor.bytes / ceilings.copy, floor.flops / ceilings.matmul)
    counts = {label: len(values) for label, values in samples.items()}
    found: Row = {
        "bench": subject.op.name,
        "case": subject.case | {"pass": which},
        "ms": times,
        "spread": {label: list(quartiles(values)) for label, values in samples.items()},
        "rounds": max(counts.values(), default=0),
        "floor_ms": floor_ms,
        "serial_ms": serial_ms,
        "steps": floor.steps,
    }
    ours = next(iter(times), None)
    if ours is not None:
        mine = times[ours]
        found |= {
            "measured": ours,
            "gigabytes_per_second": floor.bytes / mine / 1e6,
            "teraflops": floor.flops / mine / 1e9,
            "ratio_to_floor": mine / floor_ms,
            "ratio_to_serial": None if serial_ms is None else mine / serial_ms,
            "ratio_to": {label: ratio(samples, ours, label) for label in times if label != ours},
        }
    return found | {"errors": sifted.errors, "refused": sifted.refused, "rounds_of": counts}


def ratio(samples: Samples, label: str, base: str) -> float:
    """Median over the rounds of label / base where both have them; of the medians where the rounds differ."""
    a, b = samples[label], samples[base]
    if len(a) != len(b):
        return median(a) / median(b)
    return median([x / y for x, y in zip(a, b, strict=True)])

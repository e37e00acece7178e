"""Everything that needs an NVIDIA GPU, in one go: python scripts/gpu.py [STEP ...] [--seconds=540] [--quick] [--take=FILE]

    sanity   the devices, versions and compilers
    golden   known answers of every paper that has an adapter, on the device (from $PAPERLAB_GOLDEN, ./golden, or the shipped ones)
    check    every operation of kernels_pallas in small sizes against float64
    bench    the benchmark with its floors and peers
    tune     block sizes
    claims   the claims of papers that ask for this device

Nothing is downloaded: wheels lie in ./wheels (`make wheels`). Each step has its own time limit; what it did is in results/gpu.json,
and a second call goes on where the first stopped. Steps that ended are left out while no source changed; naming a step runs it
again. Where $OUT is set, results.tar.gz there holds all that was written; --take=results.tar.gz unpacks it into this tree, at home
or before the next call on a fresh machine. --quick tries every step in smallest sizes, on a CPU too, under build/gpu. Exit status:
0; 1 where a step failed or there is no GPU; 2 for a wrong command line; 3 where steps are left.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
STEPS = ("sanity", "golden", "check", "bench", "tune", "claims")
KEPT = ("results/", "kernels_pallas/tuned.json")
LEAST = 5  # seconds that a step is started for
SPARE = 60  # seconds of a step for the case that it is at when its time is over

SANITY = """
import json, os, shutil, subprocess, sys
from importlib.metadata import version, PackageNotFoundError
def of(name):
    try: return version(name)
    except PackageNotFoundError: return None
import jax
first = jax.devices()[0]
smi = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.strip() if shutil.which("nvidia-smi") else ""
names = ("jax", "jaxlib", "jax-cuda13-plugin", "torch", "triton", "flax", "grain", "fla-core", "jax-linear-attention")
x = jax.numpy.ones((256, 256))
print(json.dumps({"platform": first.platform, "device": first.device_kind, "smi": smi, "python": sys.version.split()[0],
    "nvcc": bool(shutil.which("nvcc")), "ptxas": bool(shutil.which("ptxas")), "product": float((x @ x)[0, 0]),
    "versions": {name: of(name) for name in names}}))
"""
CLAIMS = """
import importlib
from paperlab import provenance
from paperlab.claims import papers_with_claims
here = provenance.device()
for slug in papers_with_claims():
    for claim in importlib.import_module(f"paperlab.papers.{slug}.claims").CLAIMS:
        if claim.device and claim.device in here:
            print(slug, claim.id)
"""


class Step(NamedTuple):
    """A command and the most seconds it may take."""

    name: str
    command: list[str]
    seconds: float


class Place(NamedTuple):
    """Where it runs: the folder for what is written, the environment of the steps."""

    root: Path
    environment: dict[str, str]
    quick: bool


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, runs the steps, and returns the exit status."""
    flags = parsed(argv)
    if flags.take:
        print("\n".join(take(flags.take, ROOT)))
        return 0
    root = ROOT / "build" / "gpu" if flags.quick else ROOT
    place = Place(root, environment(flags.wheels), flags.quick)
    end = time.monotonic() + flags.seconds
    state = remembered(root / "results" / "gpu.json")
    if not sane(state, place, end):
        return 1
    for name in STEPS[1:]:
        old = state["steps"].get(name, {}).get("status")
        if (flags.steps and name not in flags.steps) or (not flags.steps and old in ("done", "failed")):
            continue
        state["steps"][name] = perform(name, place, end, flags.op, state)
        remember(state, place)
    print("\n".join(summary(state)))
    statuses = [state["steps"].get(name, {}).get("status", "left") for name in flags.steps or STEPS]
    return 1 if "failed" in statuses else 3 if "left" in statuses else 0


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--op", action="append", default=[], help="only this operation; may be repeated")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels", metavar="FOLDER")
    parser.add_argument("--take", type=Path, metavar="FILE")
    flags = parser.parse_args(argv)
    unknown = [name for name in flags.steps if name not in STEPS]
    if unknown:
        parser.error(f"no step is called {unknown[0]!r}: there are {', '.join(STEPS)}")
    return flags


def environment(folder: Path) -> dict[str, str]:
    """That of the steps: this tree and the installed wheels on the path."""
    from kernels_pallas.bench import wheels

    paths = [str(ROOT), wheels.install(folder), os.environ.get("PYTHONPATH", "")]
    joined = os.pathsep.join(path for path in paths if path)
    return os.environ | {"PYTHONPATH": joined, "PYTHONUNBUFFERED": "1"}


def remembered(file: Path) -> dict[str, Any]:
    """What earlier calls did with the same sources; nothing where there is no such record."""
    now = fingerprint()
    if file.exists():
        state = json.loads(file.read_text(encoding="utf-8"))
        if state["sources"] == now:
            return state
    return {"sources": now, "sanity": {}, "steps": {}}


def remember(state: dict[str, Any], place: Place) -> None:
    """Writes results/gpu.json, and results.tar.gz into $OUT."""
    file = place.root / "results" / "gpu.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    out = os.environ.get("OUT")
    if out:
        pack(Path(out) / "results.tar.gz", place.root)


def fingerprint() -> str:
    """Of the sources that the steps depend on."""
    found = hashlib.sha256()
    for file in sorted(
        file for folder in ("kernels_pallas", "paperlab", "tests/golden") for file in (ROOT / folder).rglob("*.py")
    ):
        found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def pack(file: Path, root: Path) -> None:
    """What the steps write, into one file."""
    with tarfile.open(file, "w:gz") as archive:
        for name in KEPT:
            if (root / name).exists():
                archive.add(root / name, arcname=name.rstrip("/"))


def take(file: Path, root: Path) -> list[str]:
    """Unpacks what `pack` packed; returns the names. Nothing outside its places is written.

    Raises:
      ValueError: the archive holds something else.
    """
    with tarfile.open(file) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        strange = [member.name for member in members if not member.name.startswith(KEPT) or ".." in member.name]
        if strange:
            raise ValueError(f"{file} holds {strange[0]!r}, which is no result")
        archive.extractall(root, members, filter="data")
    return [member.name for member in members]


def sane(state: dict[str, Any], place: Place, end: float) -> bool:
    """Asks for the device; False, and said, where no step can run."""
    done = performed(Step("sanity", [sys.executable, "-c", SANITY], 60), place, end, loud=False)
    lines = done["said"].splitlines()
    try:
        state["sanity"] = found = json.loads(lines[-1])
    except (IndexError, ValueError):
        print(f"sanity: {done['said'] or done['status']}")
        return False
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    print(f"{found['device']} ({found['smi'] or 'no nvidia-smi'}): {versions}", flush=True)
    if found["platform"] != "gpu":
        if not place.quick:
            print(f"no GPU: JAX sees only {found['platform']}. Nothing was measured. --quick tries the steps on a CPU.")
            return False
        print("no GPU: every step is tried on the CPU in smallest sizes, its numbers mean nothing", flush=True)
    state["steps"]["sanity"] = {"status": "done", "seconds": done["seconds"], "said": ""}
    remember(state, place)
    return True


def perform(name: str, place: Place, end: float, ops: list[str], state: dict[str, Any]) -> dict[str, Any]:
    """Runs a step within its limit and the time that is left."""
    print(f"\n== {name}", flush=True)
    if name == "claims":
        return claims(place, end)
    return performed(step(name, place, end, ops, state), place, end)


def step(name: str, place: Place, end: float, ops: list[str], state: dict[str, Any]) -> Step:
    """The command of a step; those that can stop by themselves are told when."""
    left = end - time.monotonic()
    results = place.root / "results"
    quick = ["--quick"] if place.quick else []
    if name == "golden":
        return Step(name, [sys.executable, "-m", "tests.golden", *([] if place.quick else answers())], 120)
    if name == "tune":
        table = [f"--table={place.root / 'kernels_pallas' / 'tuned.json'}"]
        seconds = f"--seconds={max(1.0, min(240.0, left) - SPARE):.0f}"
        return Step(name, [sys.executable, "-m", "kernels_pallas.tune", *ops, *table, *quick, seconds], 240)
    slug = "".join(c if c.isalnum() else "-" for c in state["sanity"]["device"].lower())
    bench = [
        sys.executable,
        "-m",
        "kernels_pallas.bench",
        *ops,
        *quick,
        *(["--resume"] if name in state["steps"] else []),
    ]
    if name == "check":
        seconds = f"--seconds={max(1.0, min(200.0, left) - SPARE):.0f}"
        return Step(name, [*bench, "--only-check", f"--json={results / 'gpu' / f'check-{slug}.json'}", seconds], 200)
    seconds = f"--seconds={max(1.0, min(330.0, left) - SPARE):.0f}"
    return Step(name, [*bench, "--peers", f"--json={results / 'bench' / f'kernels-{slug}.json'}", seconds], 330)


def answers() -> list[str]:
    """The whole collection of known answers, where it is; without it the shipped ones are taken."""
    folders = (os.environ.get("PAPERLAB_GOLDEN"), ROOT / "golden", ROOT.parent / "shared" / "golden")
    found = [folder for folder in folders if folder and Path(folder).is_dir()]
    return [f"--root={found[0]}"] if found else []


def claims(place: Place, end: float) -> dict[str, Any]:
    """Every claim that asks for this device, by the command that runs claims."""
    asked = performed(Step("claims", [sys.executable, "-c", CLAIMS], 60), place, end, loud=False)
    if asked["status"] != "done":
        return asked
    wanted = [line.split() for line in asked["said"].splitlines() if len(line.split()) == 2]
    if not wanted:
        print("no claim asks for this device", flush=True)
    total: dict[str, Any] = {"status": "done", "seconds": asked["seconds"], "said": ""}
    for slug, name in wanted:
        folder = f"--root={place.root / 'results' / 'claims'}"
        command = [sys.executable, "-m", "paperlab.claims", slug, f"--only={name}", folder]
        done = performed(Step(f"claim {slug} {name}", command, 500), place, end)
        total["seconds"] += done["seconds"]
        total["said"] += done["said"]
        if done["status"] != "done":
            total["status"] = done["status"]
    return total


def performed(step: Step, place: Place, end: float, *, loud: bool = True) -> dict[str, Any]:
    """{"status": "done" | "failed" | "left", "seconds", "said": its last words}; ends the step where its time is over."""
    start = time.monotonic()
    limit = min(step.seconds, end - start - 2)
    if limit < LEAST:
        return {"status": "left", "seconds": 0.0, "said": "no time left"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(
        step.command, cwd=ROOT, env=place.environment, start_new_session=True, text=True, **pipes
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process.stdout, lines, loud))
    reader.start()
    try:
        process.wait(timeout=limit)
        late = False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        late = True
    reader.join()
    text = "".join(lines).strip()
    status = "left" if late or process.returncode == 3 else "failed" if process.returncode else "done"
    tail = text[-4000:] + (f"\nended after {limit:.0f} s" if late else "")
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "said": tail}


def _read(stream: Any, lines: list[str], loud: bool) -> None:
    """Keeps what a step says, and shows it as it comes."""
    for line in stream:
        lines.append(line)
        if loud:
            print(line, end="", flush=True)


def summary(state: dict[str, Any]) -> list[str]:
    """A line a step."""
    lines = ["", f"on {state['sanity'].get('device', '?')}:"]
    for name in STEPS:
        done = state["steps"].get(name, {"status": "left", "seconds": 0.0})
        lines.append(f"  {name:<8} {done['status']:<7} {done['seconds']:6.0f} s")
    return lines


if __name__ == "__main__":
    sys.exit(main())

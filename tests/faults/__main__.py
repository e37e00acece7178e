"""Runs a campaign of faults; exit status 0 when every run survived, 1 when one did not, 2 for wrong arguments.

python -m tests.faults --rounds=100 --seed=0 --json=results/faults.json
python -m tests.faults --seed=0 --only=17           the 17th round alone, as it was in the campaign of that seed
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.processes import ENVIRONMENT, Launcher

os.environ.update(ENVIRONMENT)  # before anything imports jax


def main(argv: list[str] | None = None) -> int:
    from paperlab import provenance
    from tests.faults.campaign import Campaign, document, write
    from tests.faults.kinds import KINDS

    flags = parse(argv, list(KINDS))
    kinds = flags.kinds.split(",") if flags.kinds else []
    folder = flags.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    numbers = [flags.only] if flags.only is not None else range(flags.rounds)
    version, start, rounds = provenance.git_version(), time.monotonic(), []
    with Launcher(folder) as launcher:
        campaign = Campaign(folder, launcher, seed=flags.seed, kinds=kinds)
        campaign.prepare()
        print(
            f"{len(numbers)} rounds, seed {flags.seed}; undisturbed, a run takes {campaign.whole_seconds:.1f} s",
            flush=True,
        )
        for number in numbers:
            one = campaign.run(number)
            rounds.append(one)
            print(
                f"{number:4d}  {one['kind']:<28} {one['seconds']:6.1f} s  {one['what'] or 'as if nothing had been'}",
                flush=True,
            )
            if one["what"]:
                chosen = f" --kinds={flags.kinds}" if flags.kinds else ""
                print(
                    f"      python -m tests.faults --seed={flags.seed}{chosen} --only={number}    left in {folder}",
                    flush=True,
                )
            elif flags.verbose:
                print(f"      {', '.join(one['notes'])}", flush=True)
    record = document(rounds, seed=flags.seed, seconds=time.monotonic() - start, version=version)
    print(f"{record['passed']} of {record['rounds']} rounds survived, {record['seconds']:.0f} s", flush=True)
    if flags.json:
        write(flags.json, record)
    if not record["failures"] and not flags.folder:
        shutil.rmtree(folder)
    return 1 if record["failures"] else 0


def parse(argv: list[str] | None, kinds: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="ROUND")
    parser.add_argument("--kinds", default="", metavar="KIND,KIND", help=f"choose among: {', '.join(kinds)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    parser.add_argument("--folder", type=Path, help="work there and keep it; without, a temporary folder")
    parser.add_argument("--verbose", action="store_true", help="say what was done to every run")
    flags = parser.parse_args(argv)
    unknown = [name for name in flags.kinds.split(",") if name and name not in kinds]
    if unknown:
        parser.error(f"--kinds: there is no {unknown[0]!r}; there are {', '.join(kinds)}")
    if flags.rounds < 1:
        parser.error(f"--rounds={flags.rounds}: must be at least 1")
    return flags


if __name__ == "__main__":
    sys.exit(main())

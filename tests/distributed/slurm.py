"""Stand-ins for `srun` and `scontrol`: they start tasks on this machine with the variables that Slurm sets."""

import os
import sys
from pathlib import Path

from tests.distributed.processes import ROOT, environment

SRUN = """#!/bin/bash
# Starts SLURM_NTASKS tasks as srun does: one stream of output for all, and the highest status at the end.
while [ "${1#--}" != "$1" ]; do
    echo "$1" >>"$SRUN_OPTIONS"
    shift
done
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 SLURM_STEP_ID=0 \
        SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=$SLURM_JOB_NODELIST \
        SLURM_STEP_TASKS_PER_NODE=$SLURM_NTASKS "$@" &
    pids+=($!)
done
highest=0
for pid in "${pids[@]}"; do
    wait "$pid"
    status=$?
    ((status > highest)) && highest=$status
done
exit "$highest"
"""

SCONTROL = """#!/bin/bash
case "$1 $2" in
"show hostnames") echo localhost; echo second ;;
requeue*) echo "$2" >"$REQUEUED" ;;
esac
"""


def job(folder: Path, tasks: int, port: int) -> dict[str, str]:
    """The environment in which Slurm runs the batch script of a job, with stand-ins on PATH; port as the script computes it."""
    folder.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        **environment(),
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PAPERLAB": str(ROOT),
        "SRUN_OPTIONS": str(folder / "options"),
        "REQUEUED": str(folder / "requeued"),
        "SLURM_JOB_ID": str(10_000 + port - 20_000),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": str(tasks),
        "SLURM_SUBMIT_DIR": str(ROOT),
    }

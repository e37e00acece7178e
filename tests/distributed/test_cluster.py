"""Who the processes are: read from flags and from the variables of launchers, or refused in one line."""

import os
import subprocess

import pytest

from paperlab import distributed
from paperlab.distributed.cluster import Place, first_host, from_environment, from_flags
from paperlab.errors import ConfigError
from paperlab.run import main
from tests.distributed import slurm

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
FIRST = f"gpu003:{61440 + (1234 * 16 + 1) % 4096}"
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
POD = {"JAX_COORDINATOR_ADDRESS": "run-0-0.run:8476", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        (SLURM, Place(FIRST, 8, 5, (1,), "Slurm")),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "a:1"}, Place("a:1", 8, 5, (1,), "Slurm")),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "3"}, Place(FIRST, 8, 5, None, "Slurm")),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Place(FIRST, 8, 5, (1,), "Slurm")),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, Place(FIRST, 8, 5, None, "Slurm")),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Place("127.0.0.1:8476", 2, 1, (1,), "Open MPI")),
        (POD, Place("run-0-0.run:8476", 4, 3, None, "the environment")),
        ({**POD, "JAX_PROCESS_ID": "0"}, Place("run-0-0.run:8476", 4, 0, None, "the environment")),
        ({}, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "a[1-8]"}, None),  # a shell inside salloc
        ({"JOB_COMPLETION_INDEX": "3"}, None),  # an indexed job of independent runs
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_what_launchers_say(environ, place):
    assert from_environment(environ) == place


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({**SLURM, "SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        ({**SLURM, "SLURM_PROCID": "8"}, "Slurm says process 8 of 8"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS='many'"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not set"),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        ({**POD, "JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX is not set"),
        ({**POD, "JAX_COORDINATOR_ADDRESS": "nowhere"}, "'nowhere' is not HOST:PORT"),
    ],
)
def test_half_a_cluster_is_refused(environ, told):
    with pytest.raises(ConfigError, match=told):
        from_environment(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("a[3-5]", "a3"), ("a[003,7],b", "a003"), ("a,b[1-2]", "a"), ("n[1-2]-ib,x", "n1-ib")],
)
def test_the_first_of_slurms_lists(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--coordinator=localhost:1"], "--processes, --process: say all three"),
        (["--processes=2", "--process=0"], "--coordinator: say all three"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], "--process=2: must lie from 0 to 1"),
        (["--coordinator=localhost:1", "--processes=0", "--process=0"], "--processes=0: must be at least 1"),
        (["--coordinator=localhost", "--processes=2", "--process=0"], "'localhost' is not HOST:PORT"),
        (["--no_distributed", "--process=0"], "say one or the other"),
        (["--distributed"], "--distributed: "),
        (["--coordinator=localhost:1", "--processes=2", "--process=0", "--start_timeout=0"], "--start_timeout=0"),
    ],
)
def test_flags_that_cannot_be_meant_are_one_line(flags, told, capsys, monkeypatch):
    for name in (*SLURM, *MPI, *POD):
        monkeypatch.delenv(name, raising=False)
    assert main(["--config=experiments/gla.py", *flags]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_no_distributed_says_no_to_any_launcher(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert distributed.find(None) is not None
    assert distributed.find(False) is None
    assert from_flags("", None, None) is None


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (2, False), (1, False)])
def test_the_slurm_script_puts_its_job_back_only_after_75(tmp_path, status, requeued):
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$SLURM_PROCID $JAX_COORDINATOR_ADDRESS $*"\nexit {status}\n')
    program.chmod(0o755)
    job = {**slurm.job(tmp_path / "slurm", tasks=2, port=20_123), "PYTHON": str(program)}
    script = os.path.join(job["PAPERLAB"], "launch", "slurm.sbatch")
    ended = subprocess.run(["bash", script, "--config=x.py", "--a=b c"], env=job, capture_output=True, text=True)
    assert ended.returncode == status
    assert (tmp_path / "slurm" / "requeued").is_file() == requeued
    tasks = sorted(line for line in ended.stdout.splitlines() if "paperlab.run" in line)
    assert tasks == [f"{i} localhost:20123 -m paperlab.run --config=x.py --a=b c" for i in (0, 1)]


def test_the_scripts_are_sound():
    import yaml

    from tests.distributed.processes import ROOT

    for name in ("slurm.sbatch", "tpu_pod.sh"):
        assert subprocess.run(["bash", "-n", str(ROOT / "launch" / name)]).returncode == 0
    jobset = yaml.safe_load((ROOT / "launch" / "gke-jobset.yaml").read_text())
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    name = f"{jobset['metadata']['name']}-{workers['name']}-0-0.{jobset['metadata']['name']}"
    assert environ["JAX_COORDINATOR_ADDRESS"].partition(":")[0] == name
    assert int(environ["JAX_NUM_PROCESSES"]) == job["parallelism"] == job["completions"]
    place = from_environment({**environ, "JOB_COMPLETION_INDEX": "0"})
    assert place is not None
    assert place.processes == 4

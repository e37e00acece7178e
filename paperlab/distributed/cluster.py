"""Who the processes of a run are: from the flags, or from what the cluster's launcher put into the environment.

    flags        --coordinator=HOST:PORT --processes=N --process=I
    Slurm        srun: SLURM_STEP_NUM_TASKS, SLURM_PROCID ...
    Open MPI     mpirun: OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_RANK; the first host from --coordinator or JAX_COORDINATOR_ADDRESS
    Kubernetes   an indexed job or JobSet: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JOB_COMPLETION_INDEX (or JAX_PROCESS_ID)
    Cloud TPU    TPU_WORKER_HOSTNAMES (GKE); a pod of TPU VMs is asked only with --distributed, since it takes a network query

A launcher that started one process, or a shell inside an allocation, is no cluster.
"""

from collections.abc import Mapping
from typing import NamedTuple

from paperlab.errors import ConfigError

PORT = 8476  # where nothing else says


class Place(NamedTuple):
    """One process among several.

    coordinator: "host:port" of process 0, the same on all.
    processes, process: how many there are, and which this is.
    local_devices: the devices of this machine that are this process's, by number; None: all that it sees.
    found: what said so, for messages.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None
    found: str


def from_flags(coordinator: str, processes: int | None, process: int | None) -> Place | None:
    """What was said explicitly; None where nothing was. Raises ConfigError where it is not all there, or wrong."""
    given = {"--coordinator": coordinator or None, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        return None
    if missing or processes is None or process is None:
        raise ConfigError(f"{', '.join(missing)}: say all three of {', '.join(given)}, or none of them")
    if processes < 1:
        raise ConfigError(f"--processes={processes}: must be at least 1")
    if not 0 <= process < processes:
        raise ConfigError(f"--process={process}: must lie from 0 to {processes - 1}, since --processes={processes}")
    return Place(_address(coordinator, "--coordinator"), processes, process, None, "the flags")


def from_environment(environ: Mapping[str, str], *, coordinator: str = "") -> Place | None:
    """The place that the launcher's variables unmistakably say; None where they say nothing of several processes.

    Raises:
      ConfigError: they are there, but not whole.
    """
    for find in (_slurm, _open_mpi, _kubernetes):
        place = find(environ, coordinator or environ.get("JAX_COORDINATOR_ADDRESS", ""))
        if place is not None:
            if not 0 <= place.process < place.processes:
                raise ConfigError(
                    f"{place.found} says process {place.process} of {place.processes}: numbers begin at 0; say "
                    "--coordinator, --processes and --process, or --no_distributed"
                )
            return place
    hosts = [host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    slices = environ.get("MEGASCALE_NUM_SLICES", "1")
    return by_jax() if len(hosts) > 1 or slices not in ("", "1") else None


def by_jax(timeout: int = 300) -> Place:
    """The place that jax's own search finds, for Cloud TPU.

    Raises:
      ConfigError: it finds none.
    """
    try:
        from jax._src import clusters

        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, [], None, timeout)
        coordinator, processes, process, _ = found
    except Exception as error:
        raise ConfigError(f"--distributed: {_one_line(error)}; say --coordinator, --processes and --process") from error
    if coordinator is None or processes is None or process is None:
        raise ConfigError(
            "--distributed: nothing here says which processes there are (Slurm's srun, mpirun, JAX_COORDINATOR_ADDRESS, "
            "Cloud TPU); say --coordinator, --processes and --process"
        )
    return Place(coordinator, processes, process, None, "jax")


def _slurm(environ: Mapping[str, str], coordinator: str) -> Place | None:
    processes = _whole(environ, "SLURM_STEP_NUM_TASKS")
    if processes is None or processes < 2:
        return None
    process = _needed(environ, "SLURM_PROCID", "Slurm")
    if not coordinator:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
        if not nodes:
            raise ConfigError("Slurm: SLURM_STEP_NODELIST is not set; say --coordinator=HOST:PORT")
        job = _whole(environ, "SLURM_JOB_ID") or 0
        step = _whole(environ, "SLURM_STEP_ID") or 0
        coordinator = f"{first_host(nodes)}:{61440 + (job * 16 + step) % 4096}"
    tasks = _tasks_on_node(environ, processes)
    local = _whole(environ, "SLURM_LOCALID") or 0
    return Place(_address(coordinator, "Slurm"), processes, process, _own_devices(environ, tasks, local), "Slurm")


def first_host(nodes: str) -> str:
    """The first of Slurm's compressed list: "gpu[003-007,12],login" -> "gpu003"."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    numbers, _, after = rest.partition("]")
    return head + numbers.split(",")[0].split("-")[0] + after.split(",")[0]


def _tasks_on_node(environ: Mapping[str, str], processes: int) -> int:
    """Of "2(x3),1" the first; where Slurm does not say, all are taken to be on this node."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    number = text.split(",")[0].partition("(")[0]
    return int(number) if number.isdecimal() else processes


def _open_mpi(environ: Mapping[str, str], coordinator: str) -> Place | None:
    processes = _whole(environ, "OMPI_COMM_WORLD_SIZE")
    if processes is None or processes < 2:
        return None
    process = _needed(environ, "OMPI_COMM_WORLD_RANK", "Open MPI")
    tasks = _whole(environ, "OMPI_COMM_WORLD_LOCAL_SIZE") or processes
    if not coordinator:
        if tasks < processes:
            raise ConfigError(
                "Open MPI does not say which host is the first: mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT ..., "
                "or --no_distributed"
            )
        coordinator = f"127.0.0.1:{PORT}"
    local = _whole(environ, "OMPI_COMM_WORLD_LOCAL_RANK") or 0
    return Place(_address(coordinator, "Open MPI"), processes, process, _own_devices(environ, tasks, local), "Open MPI")


def _kubernetes(environ: Mapping[str, str], coordinator: str) -> Place | None:
    """An indexed job alone is no cluster: its pods may be independent runs."""
    processes = _whole(environ, "JAX_NUM_PROCESSES")
    if not coordinator or processes is None or processes < 2:
        return None
    process = _whole(environ, "JAX_PROCESS_ID")
    if process is None:
        process = _needed(environ, "JOB_COMPLETION_INDEX", "JAX_NUM_PROCESSES is set, but not JAX_PROCESS_ID")
    return Place(_address(coordinator, "JAX_COORDINATOR_ADDRESS"), processes, process, None, "the environment")


def _own_devices(environ: Mapping[str, str], tasks: int, local: int) -> tuple[int, ...] | None:
    """One device each where several processes of a machine see them all; everything where the launcher has dealt them out."""
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    dealt_out = bool(visible) and len(visible) < tasks
    return None if tasks == 1 or dealt_out else (local,)


def _address(text: str, found: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{found}: {text!r} is not HOST:PORT, where process 0 can be reached")
    return text


def _whole(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} in the environment: not a whole number; unset it, or --no_distributed")
    return int(text)


def _needed(environ: Mapping[str, str], name: str, found: str) -> int:
    value = _whole(environ, name)
    if value is None:
        raise ConfigError(f"{found}: {name} is not set; say --coordinator, --processes and --process")
    return value


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]

"""How every test runs: on 8 fake CPU devices, one thread a worker, with compiled programs kept in .cache/jax.

The environment is set here, before anything imports jax; programs that a test starts inherit it.
"""

import os
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "jax"
FLAGS = "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("NPROC", "16")  # XLA's own threads: simulated GPU threads wait for one another inside callbacks
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import gc  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("house")

MAPS = Path("/proc/self/maps")
MOST_MAPS, EVERY = 20_000, 20


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    """Lets go of compiled programs now and then: each takes some 30 memory maps, and Linux ends a process with more than 65,530."""
    done = item.config.stash.get(DONE, 0) + 1
    item.config.stash[DONE] = done
    if done % EVERY == 0 and MAPS.is_file() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


DONE = pytest.StashKey[int]()

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

from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("house")

"""What an operation tells about itself, so that tests, benchmark and tuning are written once for all of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Case = dict[str, Any]  # sizes by name and "dtype", e.g. {"B": 8, "T": 4096, "D": 2048, "dtype": "float32"}


class Floor(NamedTuple):
    """The least that a device must do: bytes (inputs read once, outputs written once), floating-point operations, and steps that
    wait for one another."""

    bytes: int
    flops: int
    steps: int


class Op(NamedTuple):
    """One operation.

    run: run(*arrays, impl=..., config=None) -> tree of arrays; differentiable in every floating array.
    example: example(case, key) -> arrays for `run`, drawn so that the result stays of size 1.
    cases: what the benchmark measures. small: the same kinds in sizes for tests, ragged ones among them.
    supports: supports(platform, *arrays) -> platforms.Support.
    configs: configs(case, platform) -> block sizes worth measuring, the default first.
    floor: floor(case, which) -> Floor, `which` is "forward" or "both" (with gradients).
    """

    name: str
    run: Callable[..., Any]
    example: Callable[[Case, Any], tuple[Any, ...]]
    cases: Sequence[Case]
    small: Sequence[Case]
    supports: Callable[..., Any]
    configs: Callable[[Case, str], Sequence[Any]]
    floor: Callable[[Case, str], Floor]

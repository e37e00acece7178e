"""Sizes of the kernels' tiles."""

from typing import NamedTuple


class Config(NamedTuple):
    """What a program of a scan works on; 0 leaves the choice to the kernel.

    rows: steps of a tile in fast memory, a multiple of 16. channels: lanes of a tile, a multiple of 128. stages: tiles in flight
    (Hopper). segments: pieces of time that run at once and are joined afterwards (Hopper, where B and D alone do not fill it).
    """

    rows: int = 0
    channels: int = 0
    stages: int = 0
    segments: int = 0

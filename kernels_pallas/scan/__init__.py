"""First-order linear recurrences: real, complex, and of 2 x 2 blocks."""

from kernels_pallas.scan.api import block2_scan, complex_scan, linear_scan
from kernels_pallas.scan.config import Config

__all__ = ["Config", "block2_scan", "complex_scan", "linear_scan"]

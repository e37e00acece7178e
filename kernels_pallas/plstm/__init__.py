"""Two-dimensional linear recurrences with the state on the edges of a grid: the core of pLSTM."""

from kernels_pallas.plstm.api import Config, plstm_grid, supports

__all__ = ["Config", "plstm_grid", "supports"]

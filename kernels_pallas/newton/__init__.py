"""Nonlinear recurrences with diagonal and 2 x 2 Jacobians, solved by Newton's method: ParaGRU and ParaLSTM."""

from kernels_pallas.newton.api import newton_gru, newton_lstm
from kernels_pallas.newton.hopper import Config as HopperConfig
from kernels_pallas.newton.sequential import fused_sequential_gru, fused_sequential_lstm
from kernels_pallas.newton.solve import ChunkedConfig
from kernels_pallas.newton.tpu import Config as TPUConfig

__all__ = [
    "ChunkedConfig",
    "HopperConfig",
    "TPUConfig",
    "fused_sequential_gru",
    "fused_sequential_lstm",
    "newton_gru",
    "newton_lstm",
]

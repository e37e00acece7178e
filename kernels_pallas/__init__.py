"""Hot loops of sequence models as functions on arrays: a plain reference first, faster forms beside it."""

from kernels_pallas.gated_linear_attention import check_log_gate, gla, gla_step
from kernels_pallas.newton import newton_gru, newton_lstm
from kernels_pallas.plstm import plstm_grid
from kernels_pallas.scan import block2_scan, complex_scan, linear_scan

__all__ = [
    "block2_scan",
    "check_log_gate",
    "complex_scan",
    "gla",
    "gla_step",
    "linear_scan",
    "newton_gru",
    "newton_lstm",
    "plstm_grid",
]

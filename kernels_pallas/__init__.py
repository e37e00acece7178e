"""Hot loops of sequence models as functions on arrays: a plain reference first, faster forms beside it."""

from kernels_pallas.gated_linear_attention import check_log_gate, gla, gla_step

__all__ = ["check_log_gate", "gla", "gla_step"]

"""Gated linear attention: `gla` over sequences, `gla_step` for one token, `check_log_gate` for debugging."""

from kernels_pallas.gated_linear_attention.api import check_log_gate, gla, gla_step

__all__ = ["check_log_gate", "gla", "gla_step"]

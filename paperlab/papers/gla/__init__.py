"""Gated Linear Attention Transformers with Hardware-Efficient Training (Yang et al., ICML 2024, arXiv 2312.06635)."""

"""SReT: Sliced Recursive Transformer (Shen et al., 2022, arXiv 2111.05297)."""

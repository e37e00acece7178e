"""Universal Transformer (Dehghani et al. 2019, arXiv 1807.03819)."""

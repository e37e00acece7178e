"""pLSTM: parallelizable Linear Source Transition Mark networks (Poeppel et al., 2025, arXiv 2506.11997)."""

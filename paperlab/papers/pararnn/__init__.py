"""ParaRNN: Unlocking Parallel Training of Nonlinear RNNs for Large Language Models (Danieli et al., arXiv 2510.21450)."""

"""Backbones that belong to no paper, found by file name: `make(config, vocab_size)`, `DEFAULTS`, `SHARDING`."""

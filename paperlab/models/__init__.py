"""Backbones that belong to no paper, one a file, found by file name: `make(config, vocab_size)`, `DEFAULTS`, `SHARDING`."""

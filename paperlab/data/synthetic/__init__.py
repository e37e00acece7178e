"""Tasks made out of integers: example i is a function of (seed, split, i)."""

"""Depth programs: which layer runs when, with which weights."""

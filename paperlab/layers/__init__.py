"""Flax layers that several mixers, models and papers share."""

"""h_t = f(h_{t-1}, x_t) over sequences, grids, graphs and sets, evaluated in parallel: pure functions on arrays."""

from paperlab.recurrence.linear import complex_scan, linear_scan

__all__ = ["complex_scan", "linear_scan"]

"""h_t = f(h_{t-1}, x_t) over sequences, grids, graphs and sets, evaluated in parallel: pure functions on arrays."""

from paperlab.recurrence.block import block_scan
from paperlab.recurrence.dag import dag_scan
from paperlab.recurrence.fold import Operator, left_fold, tree_fold
from paperlab.recurrence.grid import grid_memory
from paperlab.recurrence.jacobian import check_cell
from paperlab.recurrence.linear import complex_scan, linear_scan
from paperlab.recurrence.newton import newton_iterates, newton_solve
from paperlab.recurrence.newton_cell import Cell, Solution, Solver

__all__ = [
    "Cell",
    "Operator",
    "Solution",
    "Solver",
    "block_scan",
    "check_cell",
    "complex_scan",
    "dag_scan",
    "grid_memory",
    "left_fold",
    "linear_scan",
    "newton_iterates",
    "newton_solve",
    "tree_fold",
]

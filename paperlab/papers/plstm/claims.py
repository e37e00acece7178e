"""The paper's claims, scaled down; `python -m paperlab.claims plstm` runs them and records what came out.

Thresholds were set before the runs, in the paper's specification, which derived or calibrated those of claims 1 to 5.
"""

from functools import partial

from paperlab.evidence import Claim, Threshold
from paperlab.papers.plstm import arrow, beams, graph_claims, numerics, tracking

_FORMS = (
    "section 4.3, appendices A.3 and A.4; scale: 8x8 (state tracking), 16x16, 3 seeds; 32 steps of a sequence; float64"
)
_STABLE = "section 4.2 and appendix C; scale: 64x64, float64"

NUMBERS = [
    Claim(
        "1.forms",
        "On a grid, merged whole == in blocks of every size == node by node, with states that enter and leave (largest relative "
        "difference)",
        _FORMS,
        partial(numerics.one_function, gradients=False),
        Threshold("<=", 1e-11),
    ),
    Claim(
        "1.gradients",
        "So do the gradients of all inputs, gates and states (largest relative difference)",
        _FORMS,
        partial(numerics.one_function, gradients=True),
        Threshold("<=", 1e-11),
    ),
    Claim(
        "1.graph",
        "The recurrence on graphs, given the grid as a graph, is the recurrence on the grid (largest relative difference)",
        "section 4.1, equations 5 and 6; scale: 8x8, 3 seeds, float64",
        numerics.graph_of_grid,
        Threshold("<=", 1e-11),
    ),
    Claim(
        "1.depth",
        "Merging takes log2 N dependent merges of 2 x 2 blocks (baseline: anti-diagonals that wait for each other, 2N - 1)",
        "section 4.3; scale: N = 16, read off the program",
        numerics.depth,
        Threshold("<=", 4),
    ),
    Claim(
        "2.formula",
        "One source in P-mode is read as binom(x+y, x) a^x (1-a)^y g^(x+y-1), in D-mode without decay as exactly one everywhere "
        "(largest difference)",
        "section 4.2, equation 10, appendix C.2; scale: 16x16, three angles, two decays",
        beams.beam_formula,
        Threshold("<=", 1e-12),
    ),
    Claim(
        "2.direction",
        "The beam points along its angle (nodes between its peak and the line, anti-diagonals 16 to 256)",
        "appendix C.2",
        beams.beam_direction,
        Threshold("<=", 1),
    ),
    Claim(
        "2.not_steeper",
        "The beam's peak decays as a power of the distance, -1/2: the steeper log-log slope of two angles over 16 to 256",
        "appendix C.2",
        partial(beams.beam_decay, steepest=True),
        Threshold(">=", -0.51),
    ),
    Claim(
        "2.not_flatter",
        "The flatter log-log slope of the two",
        "appendix C.2",
        partial(beams.beam_decay, steepest=False),
        Threshold("<=", -0.48),
    ),
    Claim(
        "2.mass",
        "Without decay nothing of the beam is lost: every anti-diagonal sums to one (largest difference, 256 of them)",
        "section 4.2",
        beams.beam_mass,
        Threshold("<=", 1e-12),
    ),
    Claim(
        "2.neighbour",
        "The vertical neighbour is one decay away (weight at decay 0.95; baseline: a scan of rows 32 wide, 0.95^32)",
        "section 1, figure 1",
        beams.vertical_neighbour,
        Threshold(">=", 4.9, of_baseline=True),
    ),
    Claim(
        "3.p_mode",
        "P-mode with random columns that sum to one keeps the L1 norm of the states at one (largest difference, 64 anti-diagonals)",
        _STABLE,
        numerics.p_mode_keeps,
        Threshold("<=", 1e-12),
    ),
    Claim(
        "3.d_mode",
        "D-mode with transitions of one keeps the largest state at 0.5",
        _STABLE,
        numerics.d_mode_keeps,
        Threshold("<=", 0.5),
    ),
    Claim(
        "3.d_mode_linear",
        "Its L1 norm grows linearly: (d + 1) / 2 at step d (largest difference)",
        _STABLE,
        numerics.d_mode_grows_linearly,
        Threshold("<=", 1e-12),
    ),
    Claim(
        "3.unstabilised",
        "All four transitions at one let the L1 norm explode: 4.6e18 at step 63 (baseline: P-mode)",
        _STABLE,
        numerics.unstabilised_explodes,
        Threshold(">=", 4.6e18),
    ),
    Claim(
        "3.gradient",
        "Cotangents of at most one on the last anti-diagonal stay at most one on every earlier edge in P-mode (largest; baseline: "
        "all four at one)",
        _STABLE,
        numerics.gradient_bound,
        Threshold("<=", 1 + 1e-12),
    ),
    Claim(
        "4.angle",
        "Gradient ascent on the response at (x, y), x + y = 14, finds the angle x / (x + y) from 0.5 (largest error, four cells)",
        "section 4.2; scale: one head, one logit",
        beams.angle_learned,
        Threshold("<=", 0.01),
    ),
    Claim(
        "4.larger_grid",
        "The same angle points the same way on 64x64 (cells between the beam's peak and the line, anti-diagonals 14 to 63)",
        "section 4.2",
        beams.angle_transfers,
        Threshold("<=", 1),
    ),
]
CLAIMS = [*NUMBERS, *graph_claims.CLAIMS, *arrow.CLAIMS, *tracking.CLAIMS]

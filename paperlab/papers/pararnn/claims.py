"""The paper's claims, scaled down; `python -m paperlab.claims pararnn` runs them and records what came out.

Thresholds are those of the paper's specification, set before the runs. It gives no number for 3.iterations, 5.chaos, 6.steps,
6.flat and 3.table_6: those were set here, the first two after looking at three seeds.
"""

from functools import partial

from paperlab.evidence import Claim, Threshold
from paperlab.papers.pararnn import numerics, speed, trained

CLAIMS = [
    Claim(
        "1.three",
        "Three Newton iterations suffice at initialisation: largest residual of ParaGRU and ParaLSTM, L = 64 to 4096 (float64)",
        "Figure 4",
        partial(numerics.residual_after, iterations=3),
        Threshold("<", 1e-6),
    ),
    Claim(
        "1.four",
        "Four reach rounding (largest residual, the same)",
        "Figure 4",
        partial(numerics.residual_after, iterations=4),
        Threshold("<", 1e-12),
    ),
    Claim(
        "1.length",
        "The length does not matter: four iterations to 1e-10 at every L (largest deviation from four)",
        "section 2, Figure 4",
        numerics.independent_of_length,
        Threshold("<=", 0),
    ),
    Claim(
        "1.picard",
        "Without the Jacobian three iterations do not (residual of Picard's method, mean over cells, lengths and seeds)",
        "section 2",
        numerics.picard_residual,
        Threshold(">", 0.3),
    ),
    Claim(
        "2.small",
        "Recurrent weights within 0.5 and 0.9 buy this (largest residual after 3 iterations, ParaGRU, L = 512)",
        "section 3, appendix C.1",
        numerics.small_bounds_converge,
        Threshold("<", 1e-3),
    ),
    Claim(
        "2.large",
        "Recurrent weights within 4 and 8 lose it (smallest residual after 3 iterations)",
        "section 3, appendix C.1",
        numerics.large_bounds_do_not,
        Threshold(">", 10),
    ),
    Claim(
        "2.ordered",
        "The residual grows with the bound: 0.5, 0.9, 2, 4, 8 (neighbours in the wrong order)",
        "section 3, appendix C.1",
        numerics.bounds_are_ordered,
        Threshold("<=", 0),
    ),
    Claim(
        "3.unclipped",
        "ParaGRU learns the parity of 32 bits (accuracy at the last position)",
        "Table 6",
        partial(trained.parity, arm="parity"),
        Threshold(">=", 0.99),
    ),
    Claim(
        "3.clip09",
        "With recurrent weights within 0.9 it still does",
        "Table 6, appendix C.2",
        partial(trained.parity, arm="parity_clip09"),
        Threshold(">=", 0.97),
    ),
    Claim(
        "3.clip05",
        "Within 0.5 it does not",
        "appendix C",
        partial(trained.parity, arm="parity_clip05"),
        Threshold("<=", 0.65),
    ),
    Claim(
        "3.linear",
        "A linear recurrence with positive data-dependent decays does not",
        "Table 6",
        partial(trained.parity, arm="parity_linear"),
        Threshold("<=", 0.6),
    ),
    Claim(
        "3.three_32",
        "On what the unclipped model learned, three iterations are wrong at the length of training (largest error of 256 words)",
        "section 3",
        partial(trained.three_are_too_few, length=32),
        Threshold(">", 1),
    ),
    Claim(
        "3.three_100",
        "And more so at length 100",
        "section 3",
        partial(trained.three_are_too_few, length=100),
        Threshold(">", 1),
    ),
    Claim(
        "3.tolerance",
        "Newton's method stopped by a tolerance agrees with the recurrence there (largest error, lengths 32 and 100)",
        "section 2",
        trained.tolerance_is_enough,
        Threshold("<=", 1e-10),
    ),
    Claim(
        "3.iterations",
        "It takes twice the iterations that the model clipped at 0.9 takes (8 and 3 in the specification)",
        "section 3",
        trained.unclipped_iterations,
        Threshold(">=", 2, of_baseline=True),
    ),
    Claim(
        "3.clipped_three",
        "On the model clipped at 0.9 three iterations are exact (largest error, L = 32)",
        "section 3, appendix C.2",
        trained.clipped_three_suffice,
        Threshold("<=", 1e-10),
    ),
    Claim(
        "4.gradient",
        "Gradients by one linear solve are autodiff's of the recurrence: GRU, LSTM, a user's dense cell (largest relative error)",
        "equation 2.6",
        numerics.gradients,
        Threshold("<=", 1e-9),
    ),
    Claim(
        "4.one_scan",
        "The gradient adds one scan over time to a cell's program",
        "equation 2.6",
        numerics.scans_of_gradient,
        Threshold("<=", 1),
    ),
    Claim(
        "4.memory",
        "Its memory does not grow with the iterations (temporary bytes with 8, against 2)",
        "equation 2.6",
        numerics.gradient_memory,
        Threshold("<=", 1.05, of_baseline=True),
    ),
    Claim(
        "5.quasi",
        "On dense cells the exact Jacobian takes a quarter of its diagonal's iterations (largest ratio, gains up to 1.5)",
        "section 3; arXiv 2407.19115",
        numerics.exact_beats_diagonal,
        Threshold("<=", 0.25),
    ),
    Claim(
        "5.chaos",
        "Past the edge of chaos it is slow too (iterations at gain 2, against gain 1.5)",
        "section 3; arXiv 2508.16817",
        numerics.chaos_costs,
        Threshold(">=", 3, of_baseline=True),
    ),
    Claim(
        "6.steps",
        "Three iterations over 1024 places wait for a tenth of the steps of the recurrence (counted)",
        "section 2",
        speed.dependent_steps,
        Threshold("<=", 0.1, of_baseline=True),
    ),
    *(
        Claim(
            f"6.{cell}_{how}",
            f"{name}, L = 512, d = 1024, forward: times that {words} takes as long as the fused kernel",
            "Figure 1, section 5.1",
            partial(speed.speedup, cell=cell, slow=how),
            Threshold(">=", bound),
            device="H100",
        )
        for cell, name in (("gru", "ParaGRU"), ("lstm", "ParaLSTM"))
        for how, words, bound in (("sequential", "a compiled lax.scan", 50), ("parallel", "plain XLA in parallel", 2))
    ),
    Claim(
        "6.flat",
        "Up to 1024 steps the fused kernel's time hardly depends on the length (slope of log time over log length, 1 row, d = 128)",
        "Figure 1",
        speed.flat_in_length,
        Threshold("<=", 0.3),
        device="H100",
    ),
    *(
        Claim(
            f"3.table_6_{cell}",
            f"{name} solves every task of Table 6 at length 100, d = 64 (worst task's best seed, 200 epochs for 3000)",
            "Table 6",
            partial(trained.table_6, cell=cell),
            Threshold(">=", 0.99),
            device="H100",
        )
        for cell, name in (("gru", "ParaGRU"), ("lstm", "ParaLSTM"))
    ),
]

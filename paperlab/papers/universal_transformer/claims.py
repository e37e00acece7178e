"""The paper's claims, scaled down; `python -m paperlab.claims universal_transformer` runs them and records what came out.

Thresholds are those of the paper's specification, set before the runs. Widths, lengths and steps are smaller than there.
"""

from paperlab.evidence import Claim, Threshold
from paperlab.papers.universal_transformer import numerics, trained

CLAIMS = [
    Claim(
        "1.lengths",
        "Copy and reverse at twice the longest length seen: accuracy above the Transformer's (worse problem, mean over 3 seeds)",
        "Table of algorithmic tasks, section 3.2",
        trained.longer_rows,
        Threshold(">=", 0.15),
    ),
    Claim(
        "2.follows",
        "Pointer chasing, 1 to 4 hops learned, with a step more than hops: accuracy at 6 (baseline: five layers)",
        "section 4: depth may follow the input",
        trained.depth_follows,
        Threshold(">=", 0.8),
    ),
    Claim(
        "2.layers",
        "Five layers of their own, which the row tells the hops, cannot: accuracy at 6",
        "section 4",
        trained.depth_is_needed,
        Threshold("<=", 0.4),
    ),
    Claim(
        "3.right",
        "ACT answers 1 to 3 hops (accuracy, second best of 3 seeds)",
        "section 3.1, Table of ponder times",
        trained.pondering_is_right,
        Threshold(">=", 0.95),
    ),
    Claim(
        "3.asked",
        "Ponder time of the place that answers grows with the hops: 3 hops less 1 (second best of 3 seeds)",
        "section 3.1: ponder times of 1, 2, 3 supporting facts",
        trained.pondering_follows,
        Threshold(">=", 0.3),
    ),
    Claim(
        "3.all",
        "The same for the mean over all places of the row, facts too",
        "section 3.1",
        trained.pondering_of_all,
        Threshold(">=", 0.3),
    ),
    Claim(
        "4.parameters",
        "Six steps have the parameters of one layer (difference)",
        "section 2.1",
        numerics.steps_cost_nothing,
        Threshold("<=", 0),
    ),
    Claim(
        "4.equal",
        "At equal parameters it beats the six-layer Transformer at twice the length (worse problem, mean over 3 seeds)",
        "section 3.6: base set",
        trained.fewer_parameters,
        Threshold(">", 0),
    ),
    Claim(
        "5.steps",
        "Inference runs as many steps as the position that takes most (largest difference)",
        "section 2.2",
        numerics.stops_when_all_have,
        Threshold("<=", 0),
    ),
    Claim(
        "5.same",
        "It says what the form that takes all steps says (largest deviation)",
        "section 2.2",
        numerics.stops_with_the_same,
        Threshold("<=", 1e-5),
    ),
    Claim(
        "5.time",
        "Its time falls with the mean ponder time (rank correlation over five halting biases)",
        "section 2.2",
        numerics.stopping_saves_time,
        Threshold(">=", 1),
    ),
]

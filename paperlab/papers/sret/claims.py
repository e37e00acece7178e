"""The paper's claims, scaled down; `python -m paperlab.claims sret` runs them and records what came out.

Thresholds are those of the paper's specification, set before the runs.
"""

from paperlab.evidence import Claim, Threshold
from paperlab.papers.sret import numerics, trained

CLAIMS = [
    Claim(
        "1.sizes",
        "T, LT and S, and T and S at 384 and 512 pixels, have the published numbers of parameters (largest deviation)",
        "Tables of the authors' repository",
        numerics.published_sizes,
        Threshold("<=", 0),
    ),
    Claim(
        "1.products",
        "They cost the published products without slicing (largest relative deviation)",
        "Tables of the authors' repository",
        numerics.published_products,
        Threshold("<=", 0.01),
    ),
    Claim(
        "1.slicing",
        "Slicing saves 18.5 % (T), 17.9 % (LT) and 10.7 % (S) of them (largest deviation of the share)",
        "abstract: 10 to 30 %",
        numerics.slicing_saves,
        Threshold("<=", 0.001),
    ),
    Claim(
        "2",
        "Two passes a block beat one at equal parameters (paired t of the accuracies over 5 seeds)",
        "abstract, section 3",
        trained.recursion_helps,
        Threshold(">", 2),
    ),
    Claim(
        "3.accuracy",
        "Slicing is nearly free: accuracy lost to 4 groups and then 2, of 64 tokens (mean over 5 seeds)",
        "tables: 0.1 points",
        trained.slicing_is_nearly_free,
        Threshold("<=", 0.005),
    ),
    Claim(
        "3.products",
        "It leaves at most 40 % of the products of attention",
        "section 3",
        trained.slicing_saves_attention,
        Threshold("<=", 0.4),
    ),
    Claim(
        "4.permuted",
        "Permutation mixes: share of pairs of tokens that depend after 4 groups and then 2 (baseline: without permutation)",
        "section 3, Figure 2",
        numerics.permutation_mixes,
        Threshold(">", 0.95),
    ),
    Claim(
        "4.plain",
        "Without it, equal groups in both passes leave exactly 1 / G (largest deviation)",
        "section 3",
        numerics.without_it_nothing_does,
        Threshold("<=", 0),
    ),
    Claim(
        "5.finite",
        "A thousand applications of 10 blocks stay finite, forward and backward, from LRC of 1 and of 0.1 (numbers that are not)",
        "abstract: 100 to 1000 shared layers",
        trained.a_thousand_applications,
        Threshold("<=", 0),
    ),
    Claim(
        "5.trains",
        "A hundred applications train: the loss falls by 30 % in 200 steps (last over first, worst seed; baseline: no LRC, NLL)",
        "abstract",
        trained.deep_nets_train,
        Threshold("<=", 0.7),
    ),
]

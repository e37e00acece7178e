"""A picture of how long every word of some sentences was thought about."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from paperlab.figures import BLUE, ORANGE, in_style, new_figure


@in_style
def draw(rows: Sequence[tuple[Sequence[str], np.ndarray]], marked: Sequence[int]) -> Figure:
    """Bars of steps over words, a sentence a panel.

    Args:
      rows: (words, steps of each).
      marked: the word of every row from which the verb is predicted; it is drawn orange.
    """
    title = "Steps that every word takes; orange: the verb comes next"
    figure, axes = new_figure(title, len(rows), 1, figsize=(9, 0.6 + 1.75 * len(rows)), squeeze=False)
    most = max(float(steps.max()) for _, steps in rows)
    for axis, (words, steps), at in zip(axes[:, 0], rows, marked, strict=True):
        axis.bar(range(len(words)), steps, color=[ORANGE if i == at else BLUE for i in range(len(words))])
        axis.set_xticks(range(len(words)), words, rotation=40, ha="right", fontsize=8)
        axis.set(ylim=(0, most + 0.5), ylabel="steps")
    return figure

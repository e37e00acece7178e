"""The style of the papers' pictures: colours, settings and ticks that their rooms share.

    @in_style
    def curve(values) -> Figure:
        figure, axes = new_figure("What is shown", figsize=(8, 3))
        axes.plot(values, color=BLUE)
        return figure

Colours are those of Okabe and Ito, which read without colour vision. Imports matplotlib: the rooms import this where they draw.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
INK, GREY, PALE = "#222222", "#8a8f98", "#B8C4D6"
STYLE: dict[Any, Any] = {
    "figure.dpi": 130,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def in_style[**P](draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws with the settings of STYLE, and leaves the caller's alone."""

    @wraps(draw)
    def styled(*args: P.args, **options: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            return draw(*args, **options)

    return styled


def new_figure(title: str, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """`plt.subplots` in this style, the title at the left."""
    figure, axes = plt.subplots(rows, columns, **options)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    return figure, axes


def plain_ticks(axis: Any) -> None:
    """16, 256, 4096 instead of powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.15g}"))
    axis.set_minor_formatter(NullFormatter())

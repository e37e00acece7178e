"""Pictures of ParaRNN: how Newton's method finds a trajectory, on what that depends, and what was trained.

Every function takes arrays (those of `anatomy.py` and of the claims), draws one titled and labelled figure with pyplot and returns
it. The style is `paperlab.figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from paperlab.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, in_style, new_figure, plain_ticks

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
MARKERS = "oD^svP"
ROUNDING = 1e-16
WIDE = "#d9e2ee"


@in_style
def structures(found: Mapping[str, Any]) -> Figure:
    """State Jacobians as they are, all entries: which states a new state depends on.

    Args:
      found: {name of the cell and its structure: mean absolute entries [N, N]}.
    """
    figure, axes = new_figure(
        "What a state depends on: mean size of every entry of the Jacobian (white: exactly zero)",
        1,
        len(found),
        figsize=(2.9 * len(found) + 0.6, 3.1),
        squeeze=False,
    )
    for axis, (name, J) in zip(axes[0], found.items(), strict=True):
        shown = np.where(np.asarray(J) > 0, J, np.nan)
        picture = axis.imshow(shown, cmap="viridis_r", norm=LogNorm(1e-3, 1), interpolation="nearest")
        axis.set(title=name, xlabel="state before", xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color=GREY)
    axes[0, 0].set_ylabel("state after")
    figure.colorbar(picture, ax=axes[0].tolist(), label="|entry|", pad=0.01)
    return figure


@in_style
def iterates(states_KxT: Any, exact_T: Any) -> Figure:
    """One channel of a sequence: the guess, what every iteration makes of it, and the trajectory step by step."""
    states, exact = np.asarray(states_KxT), np.asarray(exact_T)
    figure, axes = new_figure("All steps at once: a guess, then Newton iterations", figsize=(10, 3))
    axes.plot(exact, color=WIDE, lw=6, solid_capstyle="round", label="step by step")
    for k, row in enumerate(states):
        label = "guess f(0, x)" if k == 0 else f"iteration {k}"
        axes.plot(row, color=COLOURS[(k - 1) % len(COLOURS)] if k else GREY, lw=1.2, ls="-" if k else "--", label=label)
    low, high = exact.min(), exact.max()
    room = 0.25 * (high - low) + 1e-3
    axes.set(xlabel="position", ylabel="one channel of h", xlim=(0, len(exact) - 1), ylim=(low - room, high + room))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@in_style
def residual_maps(found: Mapping[str, Any], *, least: float = 1e-16, most: float = 1e2) -> Figure:
    """|f(h_{t-1}, x_t) - h_t| by position and iteration; what is below `least` is solved to rounding.

    Args:
      found: {title: residuals [iterations + 1, T]}, one panel each. After k iterations the first k + 1 positions are exact,
        whatever the rest does: the line.
    """
    figure, axes = new_figure(
        "Residual of every position (dark: solved)", 1, len(found), figsize=(6 * len(found), 3.4), squeeze=False
    )
    for axis, (title, residuals) in zip(axes[0], found.items(), strict=True):
        rows = np.asarray(residuals)
        count, T = rows.shape
        shown = np.clip(np.where(np.isfinite(rows), rows, most), least, most)
        picture = axis.imshow(shown, norm=LogNorm(least, most), cmap="magma", aspect="auto", interpolation="nearest")
        proven = np.minimum(np.arange(count) + 1, T)
        axis.step(proven - 0.5, np.arange(count), where="mid", color=SKY, lw=1.5, label="exact by induction")
        axis.set(title=title, xlabel="position", ylim=(count - 0.5, -0.5), xlim=(-0.5, T - 0.5))
        axis.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("iteration")
    axes[0, -1].legend(loc="lower right", bbox_to_anchor=(1, 1))
    figure.colorbar(picture, ax=axes[0].tolist(), label="residual", pad=0.01)
    return figure


@in_style
def convergence(found: Mapping[str, Any], *, title: str = "The largest residual, by iteration") -> Figure:
    """{name: residuals of every iterate, the guess first}, on one logarithmic axis."""
    figure, axes = new_figure(title, figsize=(7, 3.3))
    for (name, row), colour, marker in zip(found.items(), COLOURS, MARKERS, strict=False):
        values = np.asarray(row, float)
        axes.plot(
            np.where(np.isfinite(values), np.maximum(values, ROUNDING), np.nan),
            marker + "-",
            ms=4,
            color=colour,
            label=name,
        )
    axes.set(yscale="log", xlabel="iterations", ylabel="largest residual")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, lw=0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@in_style
def bounds(
    limits: Sequence[float], residuals: Sequence[Sequence[float]], counts: Sequence[Sequence[int | None]]
) -> Figure:
    """What recurrent weights within +-c cost: the residual that three iterations leave, and iterations to the tolerance.

    Args:
      limits: c.
      residuals, counts: [limits][seeds]; a count is None where none was enough.
    """
    figure, (left, right) = new_figure(
        "Bounded recurrent weights are what buys three iterations", 1, 2, figsize=(10, 3.2)
    )
    middle = [float(np.exp(np.mean(np.log(row)))) for row in residuals]
    left.plot(limits, middle, "-", color=BLUE, lw=1.6)
    for c, row in zip(limits, residuals, strict=True):
        left.plot([c] * len(row), row, "o", color=BLUE, ms=4)
    left.axhline(1e-3, color=GREY, lw=0.9, ls=(0, (4, 3)))
    left.set(yscale="log", ylabel="residual after 3 iterations", xlabel="bound c of the recurrent weights")
    needed = [[count for count in row if count is not None] for row in counts]
    for c, row, all_of in zip(limits, needed, counts, strict=True):
        right.plot([c] * len(row), row, "o", color=VERMILION, ms=4)
        if len(row) < len(all_of):
            right.annotate(
                "not solved", (c, 0.94), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color=INK
            )
    solved = [(c, float(np.mean(row))) for c, row in zip(limits, needed, strict=True) if row]
    if solved:
        right.plot(*zip(*solved, strict=True), "-", color=VERMILION, lw=1.6)
    right.set(ylabel="iterations to 1e-10", xlabel="bound c of the recurrent weights")
    right.set_ylim(0, 1.2 * max([count for row in needed for count in row], default=1))
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        plain_ticks(axis.xaxis)
        axis.set_xticks(list(limits))
        axis.set_xlim(limits[0] / 1.3, limits[-1] * 1.3)
        axis.grid(alpha=0.3, lw=0.6)
    return figure


@in_style
def learning(found: Mapping[str, tuple[Any, Any]], *, ylabel: str, title: str, chance: float | None = None) -> Figure:
    """{arm: (steps, values)} as curves; `chance` is what guessing gives."""
    figure, axes = new_figure(title, figsize=(8, 3.2))
    for (name, (steps, values)), colour in zip(found.items(), COLOURS, strict=False):
        axes.plot(steps, values, color=colour, lw=1.6, label=name)
    if chance is not None:
        axes.axhline(chance, color=GREY, lw=0.9, ls=(0, (4, 3)))
        axes.annotate(
            "guessing", (1.01, chance), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK
        )
    axes.set(xlabel="step", ylabel=ylabel)
    axes.grid(alpha=0.3, lw=0.6)
    axes.legend()
    return figure


@in_style
def counting(states_TxN: Any, bits: Sequence[int]) -> Figure:
    """States of a model that follows parity, channel by channel, above the word it reads and the parity so far."""
    states, word = np.asarray(states_TxN), np.asarray(bits)
    parity = np.cumsum(word) % 2
    order = np.argsort([-abs(_correlation(channel, parity)) for channel in states.T])
    figure, (top, bottom) = new_figure(
        "A state that counts modulo two (channels sorted by how well they know the parity)",
        2,
        1,
        figsize=(10, 4),
        height_ratios=(5, 1),
        sharex=True,
    )
    limit = float(np.abs(states).max())
    picture = top.imshow(states.T[order], cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    top.set_ylabel("channel")
    top.spines[:].set_visible(False)
    figure.colorbar(picture, ax=top, label="h", pad=0.01)
    bottom.imshow(np.stack([word, parity]), cmap="Greys", vmin=0, vmax=1.6, aspect="auto", interpolation="nearest")
    bottom.set_yticks([0, 1], ["word", "parity"])
    bottom.tick_params(axis="y", length=0)
    bottom.spines[:].set_visible(False)
    bottom.set_xlabel("position")
    return figure


@in_style
def steps_in_time(lengths: Sequence[int], sequential: Sequence[int], parallel: Mapping[str, Sequence[int]]) -> Figure:
    """Operations that wait for each other, by length; a count and not a time."""
    figure, axes = new_figure("Operations that wait for each other (counted)", figsize=(7, 3.2))
    axes.plot(lengths, sequential, "o-", color=GREY, ms=4, label="sequential")
    for (name, row), colour, marker in zip(parallel.items(), COLOURS, MARKERS[1:], strict=False):
        axes.plot(lengths, row, marker + "-", color=colour, ms=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.set(xlabel="sequence length T", ylabel="steps in time")
    axes.grid(alpha=0.3, lw=0.6)
    axes.legend()
    return figure


def _correlation(channel: np.ndarray, parity: np.ndarray) -> float:
    if channel.std() == 0 or parity.std() == 0:
        return 0.0
    return float(np.corrcoef(channel, parity)[0, 1])

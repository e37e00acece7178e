"""Pictures of pLSTM's memory: what a node hears of another, how beams spread, what keeps states bounded, an angle learned.

Every function takes arrays (those of `numerics.py` and `beams.py`), draws one titled and labelled figure and returns it. The y axis
of a grid runs down, as the edges do. `python -m paperlab.papers.plstm.pictures [FOLDER]` draws those that need no training.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure

from paperlab.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, in_style, new_figure

FIELD = LinearSegmentedColormap.from_list("light", plt.get_cmap("Blues")(np.linspace(0.05, 0.8, 256)))


def save(figure: Figure, path: Path) -> None:
    """Writes a figure and closes it."""
    figure.savefig(path)
    plt.close(figure)


def _grid(axis: Any, field: Any, norm: LogNorm) -> Any:
    """A field [X, Y] with x to the right and y down; what is zero stays white."""
    values = np.asarray(field, float).T
    picture = axis.imshow(np.where(values > 0, values, np.nan), norm=norm, cmap=FIELD, interpolation="nearest")
    axis.set_xticks([0, values.shape[1] - 1])
    axis.set_yticks([0, values.shape[0] - 1])
    axis.spines[:].set_visible(True)
    return picture


@in_style
def receptive_fields(fields: Mapping[str, Any], *, source: tuple[int, int] = (0, 0), least: float = 1e-3) -> Figure:
    """What every node reads of one source, a panel a choice of gates.

    Args:
      fields: {title: responses [X, Y]}.
      source: where the source is (orange).
      least: lower end of the logarithmic scale.
    """
    columns = min(len(fields), 4)
    rows = -(-len(fields) // columns)
    title = "What every node hears of one (orange)"
    figure, axes = new_figure(title, rows, columns, figsize=(0.9 + 2.3 * columns, 0.6 + 2.45 * rows), squeeze=False)
    norm = LogNorm(least, 1)
    for axis, (name, field) in zip(axes.flat, fields.items(), strict=False):
        picture = _grid(axis, field, norm)
        axis.plot(*source, "s", color=ORANGE, ms=5)
        axis.set_title(name)
    for axis in axes.flat[len(fields) :]:
        axis.set_visible(False)
    axes[-1, 0].set(xlabel="x", ylabel="y")
    figure.colorbar(picture, ax=axes, label="response", shrink=0.7, pad=0.01)
    return figure


@in_style
def four_directions(fields: Sequence[Any], total: Any, *, source: tuple[int, int], least: float = 1e-3) -> Figure:
    """The reading of one source by each of four directions, and their sum, which reaches every node."""
    names = ("as it is", "x reversed", "y reversed", "both reversed", "the sum")
    figure, axes = new_figure("Four directions cover the grid", 1, 5, figsize=(12, 2.7))
    norm = LogNorm(least, 1)
    for axis, name, field in zip(axes, names, (*fields, total), strict=True):
        picture = _grid(axis, field, norm)
        axis.plot(*source, "s", color=ORANGE, ms=4)
        axis.set_title(name)
    axes[0].set(xlabel="x", ylabel="y")
    figure.colorbar(picture, ax=axes, label="response", shrink=0.85, pad=0.01)
    return figure


@in_style
def beams(lines: Mapping[float, Any], at: Sequence[int] = (16, 64, 256)) -> Figure:
    """Cross-sections of beams by angle on some anti-diagonals, and the decay of the peak.

    Args:
      lines: {angle: responses by anti-diagonal [steps, steps + 1]}, as of `beams.beams`.
      at: anti-diagonals to cut along.
    """
    figure, (left, right) = new_figure(
        "A beam keeps its direction and fades as a power of the distance", 1, 2, figsize=(10, 3.4)
    )
    colours = (BLUE, VERMILION, GREEN, PURPLE)
    for (alpha, field), colour in zip(lines.items(), colours, strict=False):
        for d, style in zip(at, (":", "--", "-"), strict=False):
            here = np.asarray(field[d - 1])[: d + 1]
            left.plot(np.arange(d + 1) / d, here / here.max(), style, color=colour, lw=1.4)
        left.axvline(alpha, color=colour, lw=0.8, alpha=0.5)
        steps = np.arange(1, len(field) + 1)
        right.plot(steps, np.asarray(field).max(1), color=colour, lw=1.8, label=f"angle {alpha:g}")
        right.plot(steps, 1 / np.sqrt(2 * np.pi * alpha * (1 - alpha) * steps), color=colour, lw=0.9, ls=(0, (4, 3)))
    for d, style in zip(at, (":", "--", "-"), strict=False):
        left.plot([], [], style, color=GREY, label=f"x + y = {d}")
    left.set(xlabel="direction, x / (x + y)", ylabel="response / peak", xlim=(0, 1), ylim=(0, 1.3))
    left.legend(ncols=3, loc="upper center")
    right.plot([], [], color=GREY, lw=0.9, ls=(0, (4, 3)), label=r"$1/\sqrt{2\pi\alpha(1-\alpha)\Delta}$")
    right.set(
        xscale="log", yscale="log", xlabel=r"steps from the source, $\Delta$ = x + y", ylabel="peak of the response"
    )
    right.grid(alpha=0.3, lw=0.6)
    right.legend()
    return figure


@in_style
def growth(norms: Mapping[str, Any]) -> Figure:
    """L1 norm of all states of an anti-diagonal, by its number, a line a mode ("P", "D", "none")."""
    names = {"P": ("P-mode: columns sum to one", BLUE), "D": ("D-mode: one turn missing", GREEN)}
    names["none"] = ("all four turns at one", VERMILION)
    figure, axis = new_figure("Why gates are stabilised: one source, 64 x 64 nodes", figsize=(7, 3.4))
    for mode, values in norms.items():
        label, colour = names[mode]
        axis.plot(np.arange(1, len(values) + 1), values, color=colour, lw=1.8, label=label)
    axis.set(yscale="log", xlabel="anti-diagonal", ylabel="L1 norm of the states on it", ylim=(0.5, None))
    axis.grid(alpha=0.3, lw=0.6)
    axis.legend()
    return figure


@in_style
def angles(paths: Mapping[tuple[int, int], Any]) -> Figure:
    """The angle by step of gradient ascent on the response at each of some cells; dashed: the direction of the cell."""
    figure, axis = new_figure("An angle is learned: the beam turns to the cell it is asked to reach", figsize=(7, 3.4))
    for ((x, y), path), colour in zip(paths.items(), (BLUE, VERMILION, GREEN, PURPLE), strict=False):
        axis.plot(path, color=colour, lw=1.8, label=f"cell ({x}, {y})")
        axis.axhline(x / (x + y), color=colour, lw=0.9, ls=(0, (4, 3)))
    axis.set(xlabel="step of gradient ascent", ylabel="angle", ylim=(0, 1), xlim=(0, None))
    axis.legend(loc="center right", bbox_to_anchor=(1, 0.36), ncols=2)
    return figure


def fields() -> dict[str, np.ndarray]:
    """{title: response [24, 24]} for modes, angles and decays, and with nodes that let nothing through."""
    from paperlab.papers.plstm.beams import d_mode, p_mode, response

    side = 24
    chosen = {f"P-mode, angle {a:g}": p_mode(side, side, a) for a in (0.2, 0.5, 0.8)}
    alpha = np.linspace(0.1, 0.9, side)[:, None, None, None]
    bent = {"rl": alpha, "ru": alpha, "dl": 1 - alpha, "du": 1 - alpha}
    plain = p_mode(side, side, 0.5)
    turned: dict[str, Any] = {name: np.broadcast_to(a, plain.rl.shape).astype("float32") for name, a in bent.items()}
    chosen["P-mode, angle grows with x"] = plain._replace(**turned)
    chosen |= {"P-mode, decay 0.9": p_mode(side, side, 0.5, 0.9), "D-mode, decay 0.9": d_mode(side, side, 0.9)}
    wall = np.ones((side, side, 1, 1), "float32")
    wall[6:14, 10] = 0
    for chirality in "LR":
        gates = d_mode(side, side, 0.9, chirality)
        turns = {name: getattr(gates, name) for name in ("rl", "ru", "dl", "du")}
        shut: dict[str, Any] = {name: None if gate is None else gate * wall for name, gate in turns.items()}
        chosen[f"D-mode ({chirality}), a wall"] = gates._replace(**shut)
    return {name: np.array(response(gates)) for name, gates in chosen.items()}


def directions() -> tuple[list[np.ndarray], np.ndarray, tuple[int, int]]:
    """(responses of four directions with angles of their own, their sum, the source)."""
    from paperlab.papers.plstm.beams import p_mode, response

    side, source = 24, (9, 14)
    each = []
    for alpha, axes in zip((0.35, 0.5, 0.6, 0.75), ((), (0,), (1,), (0, 1)), strict=True):
        start = tuple(side - 1 - s if axis in axes else s for axis, s in enumerate(source))
        field = np.array(response(p_mode(side, side, alpha), (start[0], start[1])))
        each.append(np.flip(field, axes) if axes else field)
    return each, np.sum(each, 0), source


def main(folder: Path) -> None:
    """Draws receptive fields and four directions into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save(receptive_fields(fields()), folder / "fields.png")
    each, total, source = directions()
    save(four_directions(each, total, source=source), folder / "directions.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/claims/plstm"))

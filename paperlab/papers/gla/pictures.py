"""Pictures of a trained GLA: what it learned, keeps and forgets.

Every function takes arrays (those of `anatomy.py`), draws one titled and labelled figure with pyplot and returns it. Maps
print well and read without colour vision; the style is `paperlab.figures`. `charts.py` has costs and comparisons.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from paperlab.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, in_style, new_figure, plain_ticks
from paperlab.papers.gla.anatomy import half_lives

LAYERS = (SKY, ORANGE, GREEN, PURPLE, BLUE, VERMILION)
SYMBOLS = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", " ": "\N{OPEN BOX}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


def visible(text: str) -> list[str]:
    """One visible sign a character: blanks and line ends get their own."""
    return [SYMBOLS.get(letter, letter if letter.isprintable() else "\N{MIDDLE DOT}") for letter in text]


def letter_ticks(axis: Any, text: str) -> None:
    """The characters of `text` along the x axis."""
    axis.set_xticks(range(len(text)), visible(text), family="monospace", fontsize=8)
    axis.tick_params(axis="x", length=0, pad=2)


@in_style
def learning(metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Figure:
    """Training bits a byte by step, and the validation files' beside unigrams, bigrams, gzip and xz.

    Args:
      metrics: lines of metrics.jsonl, `paperlab.Run.metrics`.
      summary: of the same run, with `val_bits_per_byte` and `baselines`.
    """
    figure, axes = new_figure("The loss beside what needs no network", figsize=(8.5, 3.4))
    points = [(line["step"], line["bits_per_byte"]) for line in metrics if "bits_per_byte" in line]
    steps, bits = np.array(points).T
    axes.plot(steps, bits, color=BLUE, lw=1.8, label="training")
    axes.plot(summary["steps"], summary["val_bits_per_byte"], "o", color=VERMILION, label="validation, whole split")
    names = {"unigram": "unigram", "bigram": "bigram", "gzip9": "gzip -9", "xz9": "xz -9"}
    for key, name in names.items():
        value = summary["baselines"][f"{key}_bits_per_byte"]
        axes.axhline(value, color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"{name} {value:.2f}", (1.01, value), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK
        )
    axes.set(xlabel="step", ylabel="bits a byte", ylim=(0, None), xlim=(0, summary["steps"] * 1.01))
    axes.legend(loc="lower left")
    return figure


@in_style
def gate_map(log_alpha_LxTxGxK: Any, text: str, *, shortest: float = 1, longest: float = 64) -> Figure:
    """Half-life of every channel at every character, a panel a layer; heads one above the other, channels sorted.

    Args:
      log_alpha_LxTxGxK: gates of one text.
      text: its characters, T of them.
      shortest, longest: ends of the colour scale, in tokens.
    """
    L, _, G, K = log_alpha_LxTxGxK.shape
    figure, axes = new_figure(
        "What each character does to the memory of each channel", L, figsize=(12, 1 + 1.55 * L), squeeze=False
    )
    norm = LogNorm(shortest, longest)
    for layer, (axis,) in enumerate(axes):
        here = np.asarray(log_alpha_LxTxGxK[layer])
        order = np.argsort(half_lives(here, 0), axis=-1)
        rows = np.concatenate([half_lives(here[:, head, order[head]]) for head in range(G)], -1).T
        picture = axis.imshow(
            np.clip(rows, shortest, longest), norm=norm, cmap="cividis", aspect="auto", interpolation="nearest"
        )
        for border in range(1, G):
            axis.axhline(border * K - 0.5, color="white", lw=1.5)
        axis.set_yticks([K * (head + 0.5) - 0.5 for head in range(G)], [f"head {head}" for head in range(G)])
        axis.tick_params(axis="y", length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(f"layer {layer}")
        letter_ticks(axis, text)
    axes[-1, 0].set_xlabel("character read")
    bar = figure.colorbar(picture, ax=axes, label="half-life at this character, tokens", shrink=0.8, pad=0.01)
    bar.ax.set_yscale("log", base=2)
    plain_ticks(bar.ax.yaxis)
    return figure


@in_style
def half_life_curves(log_alpha_LxNxGxK: Any, *, start: float, longest: float) -> Figure:
    """Half-life of every channel over a corpus, sorted, with the span of its values at single tokens; a panel a layer.

    Args:
      log_alpha_LxNxGxK: gates at N tokens.
      start: the half-life at initialisation.
      longest: the training length, both in tokens.
    """
    L, _, G, K = log_alpha_LxNxGxK.shape
    figure, axes = new_figure(
        "Half-lives that were learned (bands: the middle 90 % of tokens)", 1, L, figsize=(12, 3.4), sharey=True
    )
    for layer, axis in enumerate(np.atleast_1d(axes)):
        for head in range(G):
            here = np.asarray(log_alpha_LxNxGxK[layer, :, head])
            order = np.argsort(half_lives(here, 0))
            colour = (BLUE, VERMILION, GREEN, PURPLE)[head % 4]
            low, high = half_lives(np.quantile(here, (0.05, 0.95), axis=0)[:, order])
            axis.fill_between(range(K), low, high, color=colour, alpha=0.18, lw=0)
            axis.plot(range(K), half_lives(here, 0)[order], color=colour, lw=1.8, label=f"head {head}")
        axis.axhline(start, color=GREY, lw=0.9, ls=(0, (4, 3)))
        axis.axhline(longest, color=GREY, lw=0.9, ls=":")
        axis.set(title=f"layer {layer}", xlabel="key channel, sorted", yscale="log", ylim=(0.5, longest * 1.6))
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("half-life, tokens")
    first.set_yscale("log", base=2)
    plain_ticks(first.yaxis)
    first.annotate(f"at initialisation: {start:.0f}", (0.3, start), va="bottom", fontsize=8, color=INK)
    first.annotate(f"training length: {longest:g}", (0.3, longest), va="bottom", fontsize=8, color=INK)
    first.legend(loc="lower right")
    return figure


@in_style
def half_life_by_character(log_alpha_LxNxGxK: Any, characters: Sequence[str], *, least: int = 100) -> Figure:
    """Mean half-life of a layer at each character that occurs at least `least` times, sorted by the last layer."""
    gates = np.asarray(log_alpha_LxNxGxK, np.float64).mean((2, 3))
    letters, where, counts = np.unique(np.asarray(characters), return_inverse=True, return_counts=True)
    common = np.flatnonzero(counts >= least)
    totals = np.stack([np.bincount(where, layer, len(letters)) for layer in gates])[:, common]
    with np.errstate(divide="ignore"):
        values = np.log(2) / -(totals / counts[common])
    order = np.argsort(values[-1])
    figure, axes = new_figure("When a layer forgets: half-life by the character that is read", figsize=(12, 3.2))
    for layer, row in enumerate(values):
        axes.plot(
            row[order], "osD^v*"[layer % 6], ms=5, color=LAYERS[layer % len(LAYERS)], label=f"layer {layer}", alpha=0.9
        )
    names = "".join(letters[common][order])
    letter_ticks(axes, names)
    axes.tick_params(axis="x", labelsize=9)
    axes.set_yscale("log", base=2)
    plain_ticks(axes.yaxis)
    axes.grid(axis="y", alpha=0.3, lw=0.6)
    axes.set(xlabel="character, from the one at which the last layer forgets most", ylabel="half-life, tokens")
    axes.set_xlim(-1, len(names))
    axes.legend(ncols=len(values), loc="lower right", bbox_to_anchor=(1, 1))
    return figure


@in_style
def state_multiples(S_TxHxKxV: Any, text: str, moments: Sequence[int], layer: int) -> Figure:
    """S_t after some tokens: a column a moment, a row a head, one colour scale a head.

    Args:
      S_TxHxKxV: states of one layer, after each token.
      text: what was read, T characters.
      moments: numbers of characters read.
      layer: its number, for the title.
    """
    H = S_TxHxKxV.shape[1]
    figure, axes = new_figure(
        f"The memory itself: $S_t$ of layer {layer} (below t: what was read last)",
        H,
        len(moments),
        figsize=(12, 1.1 + 1.35 * H),
        squeeze=False,
    )
    for head in range(H):
        limit = float(np.quantile(np.abs(S_TxHxKxV[:, head]), 0.998))
        for column, moment in enumerate(moments):
            axis = axes[head, column]
            picture = axis.imshow(S_TxHxKxV[moment - 1, head], cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(True)
            if head == 0:
                tail = "".join(visible(text[max(moment - 9, 0) : moment]))
                axis.set_title(f"t = {moment}\n…{tail}", family="monospace", fontsize=8)
            if head == H - 1:
                axis.set_xlabel("value channel", fontsize=8)
        axes[head, 0].set_ylabel(f"head {head}\nkey channel", fontsize=8)
        figure.colorbar(picture, ax=axes[head], label="entry of S", pad=0.01)
    return figure


@in_style
def state_growth(norms_TxL: Any, ranks_TxL: Any, text: str, most: int) -> Figure:
    """Size and effective rank of the states by the number of characters read, a line a layer; ticks mark line ends."""
    figure, axes = new_figure("How large the memory is, and how much of it is in use", 1, 2, figsize=(12, 3))
    for axis, values, label in ((axes[0], norms_TxL, "|S|, mean over heads"), (axes[1], ranks_TxL, "effective rank")):
        for layer, row in enumerate(np.asarray(values).T):
            axis.plot(range(1, len(row) + 1), row, color=LAYERS[layer % len(LAYERS)], lw=1.5, label=f"layer {layer}")
        ends = [i + 1 for i, letter in enumerate(text) if letter == "\n"]
        axis.plot(ends, [0] * len(ends), "|", color=INK, ms=7, clip_on=False, label="line end")
        axis.set(xlabel="characters read", ylabel=label, ylim=(0, None), xlim=(0, len(text)))
        axis.grid(axis="y", alpha=0.3, lw=0.6)
    axes[1].axhline(most, color=GREY, lw=0.9, ls=(0, (4, 3)))
    axes[1].annotate(f"full: {most}", (2, most), va="bottom", fontsize=8, color=INK)
    axes[1].set_ylim(0, most * 1.15)
    axes[1].legend(ncols=len(axes[1].lines), loc="lower right", bbox_to_anchor=(1, 1))
    return figure


@in_style
def influence_map(bits_TxT: Any, text: str, *, least: float = 1e-4) -> Figure:
    """What each character still changes later on, and the mean over all pairs at one distance.

    Args:
      bits_TxT: of `anatomy.influence`, row j is the changed character, column t where its effect is measured.
      text: T characters.
      least: lower end of the scale, in bits.
    """
    T = len(text)
    title = "What the state has not forgotten: bits by which the prediction after t changes with character j"
    figure, (left, right) = new_figure(title, 1, 2, figsize=(12, 5.4), width_ratios=(1.5, 1))
    shown = np.where(np.triu(np.ones((T, T), bool)), np.maximum(bits_TxT, least), np.nan)
    picture = left.imshow(shown, norm=LogNorm(least, 10), cmap="magma", interpolation="nearest")
    ends = [i for i, letter in enumerate(text) if letter == "\n"]
    for end in ends:
        left.axvline(end + 0.5, color=SKY, lw=0.6)
    left.set(xlabel="t: character read (blue: line ends)", ylabel="j: character that is exchanged")
    left.spines[:].set_visible(False)
    figure.colorbar(picture, ax=left, shrink=0.85, pad=0.01).ax.set_title("bits", loc="left", fontsize=9)
    distance = np.arange(T - 10)
    mean = [np.diagonal(bits_TxT, d).mean() for d in distance]
    low, high = np.array([np.quantile(np.diagonal(bits_TxT, d), (0.25, 0.75)) for d in distance]).T
    right.fill_between(distance + 1, np.maximum(low, least), np.maximum(high, least), color=BLUE, alpha=0.2, lw=0)
    right.plot(distance + 1, np.maximum(mean, least), color=BLUE, lw=1.8, label="mean (band: quartiles)")
    right.set(xscale="log", yscale="log", xlabel="t - j + 1", ylabel="bits", ylim=(least, 10))
    right.xaxis.set_major_locator(LogLocator(2))
    right.set_xscale("log", base=2)
    plain_ticks(right.xaxis)
    right.grid(alpha=0.3, lw=0.6)
    right.set_title("by distance")
    right.legend(loc="lower left")
    return figure

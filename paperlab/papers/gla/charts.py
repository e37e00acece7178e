"""Charts of GLA: what its forms cost, where one of them fails, what decoding holds, what the gate is worth.

Every function takes measurements, draws one titled and labelled figure with pyplot and returns it (style: `paperlab.figures`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from paperlab.figures import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, VERMILION, in_style, new_figure, plain_ticks


@in_style
def time_ratios(lengths: Sequence[int], ratios: Mapping[str, Sequence[float | None]], reference: str) -> Figure:
    """Time of every form over that of `reference`, by length; None where a form was not run."""
    figure, axes = new_figure(f"Time of the forms, as a share of the {reference} one's", figsize=(8.5, 3.4))
    styles = zip((GREY, BLUE, GREEN, ORANGE, PURPLE), ("o", "D", "^", "s", "v"), strict=True)
    for (name, values), (colour, marker) in zip(ratios.items(), styles, strict=False):
        gaps = np.array([np.nan if value is None else value for value in values])
        axes.plot(lengths, gaps, marker=marker, ms=5, lw=1.6, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.set_xticks(list(lengths))
    axes.grid(alpha=0.3, lw=0.6)
    axes.set(xlabel="sequence length T", ylabel=f"time / time of {reference}")
    axes.legend(ncols=2)
    return figure


@in_style
def errors_by_decay(strengths: Sequence[float], errors: Mapping[str, Sequence[float]], learned: float) -> Figure:
    """Largest error of each form by the decay a token; crosses at the top where the result is not finite.

    Args:
      strengths: -log alpha a token.
      errors: {form: largest absolute errors}, NaN or infinite where outputs are.
      learned: the largest mean of -log alpha over 256 consecutive tokens in a trained model.
    """
    figure, axes = new_figure("Strong gates overflow the one-level form in float32", figsize=(10, 3.4))
    finite = np.concatenate([np.asarray(row, float) for row in errors.values()])
    top = 4 * float(finite[np.isfinite(finite)].max())
    styles = zip((ORANGE, VERMILION, BLUE), ("s", "^", "o"), strict=True)
    for height, ((name, row), (colour, marker)) in enumerate(zip(errors.items(), styles, strict=False)):
        values = np.asarray(row, float)
        good = np.isfinite(values)
        axes.plot(np.asarray(strengths)[good], values[good], marker=marker, ms=4, lw=1.6, color=colour, label=name)
        x = np.asarray(strengths)[~good]
        axes.plot(x, [top * 1.6**height] * len(x), "x", color=colour, ms=6, mew=1.8, label="   NaN" if len(x) else None)
    axes.axvline(learned, color=GREY, lw=1, ls=(0, (4, 3)), label="strongest 256 tokens\nof the trained model")
    axes.set(xscale="log", yscale="log", xlabel="decay a token, $-\\log\\alpha$", ylabel="largest absolute error")
    plain_ticks(axes.xaxis)
    axes.grid(alpha=0.3, lw=0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@in_style
def memory(lengths: Sequence[int], sizes: Mapping[str, Sequence[int]]) -> Figure:
    """Bytes held while decoding, by the number of tokens read."""
    figure, axes = new_figure("What decoding has to hold", figsize=(8.5, 3.2))
    for (name, row), colour, marker in zip(
        sizes.items(), (BLUE, ORANGE, VERMILION, GREEN), ("o", "s", "D", "^"), strict=False
    ):
        axes.plot(lengths, np.asarray(row) / 1024, marker=marker, ms=4, lw=1.6, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.grid(alpha=0.3, lw=0.6)
    for row in sizes.values():
        axes.annotate(f" {row[-1] / 1024:,.0f} KiB", (lengths[-1], row[-1] / 1024), va="center", fontsize=8, color=INK)
    axes.set(xlabel="tokens of context", ylabel="KiB a text")
    axes.legend()
    return figure


@in_style
def perplexity_bars(
    found: Mapping[str, Sequence[float]], *, title: str = "What the gate is worth (dots: seeds)"
) -> Figure:
    """Validation perplexity of the arms of the ablation, their seeds as dots."""
    names = {"no_gate": "no gate", "fixed_decay": "fixed decay", "scalar_gate": "scalar gate", "channel_gate": "GLA"}
    figure, axes = new_figure("", figsize=(5.2, 3.2))
    for i, (arm, values) in enumerate(found.items()):
        axes.bar(i, np.mean(values), width=0.6, color=BLUE if arm == "channel_gate" else PALE)
        axes.plot([i] * len(values), values, "o", ms=3.5, color=INK)
    axes.set_xticks(range(len(found)), [names.get(arm, arm) for arm in found])
    axes.set(ylabel="validation perplexity a byte", title=title)
    return figure


@in_style
def perplexity_by_position(losses: Mapping[str, Any], trained_at: int, *, block: int = 64) -> Figure:
    """Perplexity along windows longer than those of training, in blocks; bands span the seeds.

    Args:
      losses: {"channel_gate" or "attention": nats a byte [seeds, positions]}.
      trained_at: the training length.
      block: positions that are averaged.
    """
    names = {"channel_gate": ("GLA", BLUE), "attention": ("softmax, rotary", VERMILION)}
    figure, axes = new_figure("", figsize=(5.2, 3.2))
    for arm, values in losses.items():
        blocks = np.exp(values.reshape(len(values), -1, block).mean(-1))
        centres = np.arange(blocks.shape[1]) * block + block // 2
        label, colour = names[arm]
        axes.plot(centres, blocks.mean(0), color=colour, label=label)
        axes.fill_between(centres, blocks.min(0), blocks.max(0), color=colour, alpha=0.2, lw=0)
    axes.axvline(trained_at, color=GREY, lw=1, ls="--")
    axes.text(trained_at * 1.05, axes.get_ylim()[1], "training length", va="top", fontsize=8, color=INK)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value in (3, 5, 20, 30, 50) else ""))
    axes.set(
        xlabel="position in the window", ylabel="perplexity a byte", title="Beyond the training length (bands: seeds)"
    )
    axes.legend()
    return figure

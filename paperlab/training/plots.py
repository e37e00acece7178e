"""curves.png: the training loss, the evaluators beside it, and the learning rate, from metrics.jsonl."""

from pathlib import Path
from typing import Any

from paperlab.training.writers import read

INK, GREY = "#22313f", "#8a97a3"
COLOURS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#6b4e9b", "#2e4057")


def plot_curves(workdir: Path, title: str = "") -> Path | None:
    """Draws workdir/curves.png; None when there is nothing to draw."""
    file = workdir / "metrics.jsonl"
    lines = read(file) if file.is_file() else []
    loss = _series(lines, "loss")
    if not loss[0]:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), dpi=130, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.plot(*loss, color=GREY, lw=0.8, alpha=0.5)
    top.plot(loss[0], _smooth(loss[1]), color=INK, lw=1.6, label="train loss")
    evaluators = _evaluators(lines)
    for colour, (name, series) in zip(COLOURS, evaluators.items(), strict=False):
        top.plot(*series, color=colour, lw=1.4, marker="o", ms=3.5, label=name.replace("_", " "))
    top.set_title(title or workdir.name, loc="left", fontsize=11, color=INK)
    top.legend(frameon=False, fontsize=9)
    bits = any(name.endswith("_bits_per_byte") for name in evaluators)
    top.set_ylabel("loss, bits per byte" if bits else "loss", fontsize=9)
    rates = _series(lines, "learning_rate")
    bottom.plot(*rates, color=INK, lw=1.2)
    if any(rate > 0 for rate in rates[1]):
        bottom.set_yscale("log")
        bottom.minorticks_off()
    bottom.set_ylabel("learning rate", fontsize=9)
    bottom.set_xlabel("step", fontsize=9)
    figure.align_ylabels()
    for axes in (top, bottom):
        _style(axes)
    path = workdir / "curves.png"
    part = workdir / ".curves.part.png"
    figure.savefig(part)
    part.replace(path)
    return path


def _evaluators(lines: list[dict[str, Any]]) -> dict[str, tuple[list, list]]:
    """Curves on the scale of the loss: losses and bits of the evaluators, a few at most."""
    names = dict.fromkeys(name for line in lines for name in line)
    chosen = [n for n in names if n.endswith(("_loss", "_bits_per_byte"))]
    return {name: _series(lines, name) for name in chosen[: len(COLOURS)]}


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list, list]:
    pairs = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _smooth(values: list[float]) -> list[float]:
    """Exponential mean over about a fiftieth of the run, without the start's bias."""
    keep = 1 - 1 / max(len(values) / 50, 1)
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return smooth


def _style(axes: Any) -> None:
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)

"""Curves of any length as a few hundred points: what the eye would see stays, the extremes among it."""

import numpy as np

from paperlab.report.runs import Series

SMOOTHED_FROM = 60


def thin(series: Series, most: int) -> Series:
    """At most about `most` points: of every stretch of steps its lowest and highest value and its first gap.

    The first and the last point always stay. Points are not moved, so a spike of one step is as high as it was.
    """
    steps, values = series
    if len(steps) <= most:
        return series
    stretches = max(most // 3, 1)
    span = max(steps[-1] - steps[0], 1)
    stretch = np.minimum((steps - steps[0]) / span * stretches, stretches - 1).astype(int)
    borders = np.flatnonzero(np.diff(stretch, prepend=-1))
    kept = {0, len(steps) - 1}
    for begin, end in zip(borders, [*borders[1:], len(steps)], strict=True):
        part = values[begin:end]
        gaps = np.flatnonzero(~np.isfinite(part))
        if len(gaps):
            kept.add(int(begin + gaps[0]))
        if len(gaps) < len(part):
            kept.update((int(begin + np.nanargmin(part)), int(begin + np.nanargmax(part))))
    index = np.fromiter(sorted(kept), int)
    return steps[index], values[index]


def running_mean(series: Series) -> Series | None:
    """The centred mean over about a fiftieth of the points; None where the curve is short or not noisy.

    A curve is noisy where it turns at more than a quarter of its points: a schedule stays as it is.
    """
    steps, values = series
    there = np.isfinite(values)
    moves = np.sign(np.diff(values[there]))
    if there.sum() < SMOOTHED_FROM or (moves[1:] * moves[:-1] < 0).mean() < 0.25:
        return None
    window = np.ones(2 * max(len(values) // 100, 1) + 1)
    # "same" would take the length of the window where that is the longer one.
    sums, weights = (
        np.convolve(part, window)[len(window) // 2 :][: len(values)] for part in (np.where(there, values, 0.0), there)
    )
    return steps, np.where(there, sums / np.maximum(weights, 1), np.nan)

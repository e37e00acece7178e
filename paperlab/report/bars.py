"""Bars and strips: numbers that stand in the text, drawn beside it. The picture adds nothing that is not also written."""

import math
from collections.abc import Sequence

import numpy as np

from paperlab.report.charts import BOX, Axis, span
from paperlab.report.elements import Element, h
from paperlab.report.numbers import float_of

LOG_FROM = 50


def bar(value: float | None, top: float, *, spread: Sequence[float] = (), ink: str = "") -> Element:
    """A bar from zero; `top` is the full width.

    Args:
      spread: (low, high), drawn as a thin line over the end of the bar.
    """
    if value is None or top <= 0:
        return h("span", class_="bar", aria_hidden="true")
    pieces = [h("span", class_=f"fill {ink}".strip(), style=f"width:{_share(value, top)}")]
    ends = [float_of(end) for end in spread]
    if len(ends) == 2 and None not in ends:
        low, high = (max(min(end or 0.0, top), 0.0) for end in ends)
        pieces.append(h("span", class_="spread", style=f"left:{_share(low, top)};width:{_share(high - low, top)}"))
    return h("span", pieces, class_="bar", aria_hidden="true")


def _share(value: float, top: float) -> str:
    return f"{min(max(value / top, 0.0), 1.0):.2%}"


def strip(
    value: float | None,
    seeds: Sequence[float],
    baselines: Sequence[float],
    bound: float | None,
    relation: str,
) -> Element | None:
    """A claim at a glance: a large dot for its value, small ones for the seeds, strokes for the baseline's seeds.

    Args:
      value: what is held against the bound.
      seeds, baselines: one number a seed, or none.
      bound: where the shaded side begins.
      relation: "<", "<=", ">=" or ">": on which side of the bound the claim holds.
    """
    if value is None:
        return None
    shown = np.array([value, *seeds, *baselines, *([] if bound is None else [bound])], np.float64)
    if not np.isfinite(shown).all():
        return None
    log = bool(shown.min() > 0 and shown.max() / shown.min() > LOG_FROM)
    axis = span([shown], log=log)
    if axis is None:
        return None
    axis = _wider(axis)
    pieces: list[Element] = []
    if bound is not None and relation:
        at = float(axis.at(bound))
        left, right = (0.0, at) if relation.startswith("<") else (at, float(BOX))
        pieces.append(h("rect", x=f"{left:.0f}", y=0, width=f"{right - left:.0f}", height=BOX, class_="good"))
        pieces.append(h("path", d=f"M{at:.0f},0V{BOX}", class_="bound"))
    pieces += [h("path", d=f"M{float(axis.at(v)):.0f},200V800", class_="other") for v in baselines]
    pieces += [h("path", d=f"M{float(axis.at(v)):.0f},500h0", class_="seed") for v in seeds]
    pieces.append(h("path", d=f"M{float(axis.at(value)):.0f},500h0", class_="value"))
    return h("svg", pieces, viewbox=f"0 0 {BOX} {BOX}", preserveAspectRatio="none", aria_hidden="true", class_="strip")


def _wider(axis: Axis) -> Axis:
    """Air on both sides, so that no mark touches the edge."""
    if axis.log:
        air = (axis.high / axis.low) ** 0.08 if math.isfinite(axis.high / axis.low) else 2.0
        return Axis(max(axis.low / air, 5e-324), min(axis.high * air, 1.7e308), log=True)
    air = 0.08 * (axis.high - axis.low)
    return Axis(axis.low - air, axis.high + air)

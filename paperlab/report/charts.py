"""Line charts: the curves in an SVG that stretches with the page, axes and labels in text that does not.

A chart is drawn on a linear and, where every value is positive, on a logarithmic axis; the reader chooses by two radio
buttons, which need no script. Colours come from the page by class (`ink-0` .. `ink-7`, `ink-rest`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paperlab.report.elements import Element, h, hidden, table
from paperlab.report.numbers import number, tick_labels, ticks
from paperlab.report.runs import Series
from paperlab.report.thinning import running_mean, thin

COLOURS = 8
BOX = 1000  # the coordinates of a plot run from 0 to this, both ways
POINTS = 12_000  # of all curves of a chart together
FEW = 16  # so many points are drawn as points too
STEEP = 30  # the ratio between all but the outermost values from which the logarithmic axis is shown first


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Args:
      key: names what is drawn all over the page (`data-key`), so that hiding it hides it everywhere.
      label: what the reader sees.
      series: (x, y); NaN breaks the line.
      ink: the class that gives it its colour, from `ink`.
      marks: places on the x axis where something happened to it.
    """

    key: str
    label: str
    series: Series
    ink: str
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Axis:
    """Values -> 0 .. BOX."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, values: Any) -> np.ndarray:
        """Positions; NaN outside of what a logarithm takes."""
        values = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(values > 0, np.log10(values), np.nan)
            low, high = math.log10(low), math.log10(high)
        return (values - low) / (high - low) * BOX

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """(position, label) of every tick."""
        values = ticks(self.low, self.high, log=self.log, count=count, whole=self.whole)
        return list(zip(self.at(values).tolist(), tick_labels(values), strict=True))


def ink(place: int) -> str:
    """The colour class of the curve at a place in the legend; after the eighth all share a quiet one."""
    return f"ink-{place}" if place < COLOURS else "ink-rest"


def span(parts: Sequence[np.ndarray], *, log: bool = False) -> Axis | None:
    """The axis that holds all finite (for a logarithm: positive) values with a little air; None where there are none."""
    values = np.concatenate([np.zeros(0), *parts])
    values = values[np.isfinite(values) & ((values > 0) if log else True)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if log:
        air = max((high / low) ** 0.04, 1.02) if math.isfinite(high / low) else 2.0
        return Axis(max(low / air, 5e-324), min(high * air, 1.7e308), log=True)
    air = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    if not math.isfinite(high - low):
        return Axis(low, high / 2) if low < 0 else Axis(0.0, high)
    return Axis(low - air, high + air)


def chart(
    identity: str,
    name: str,
    curves: Sequence[Curve],
    *,
    x_label: str = "step",
    references: dict[str, float] | None = None,
    log_x: bool = False,
    legend: bool = False,
) -> tuple[Element, dict[str, Any]] | None:
    """A figure and what its read-out needs, {key: [x, y]}; None where there is nothing to draw.

    Args:
      identity: unique on the page, for its controls and its read-out.
      name: what is drawn; its heading.
      curves: what is drawn, the most important first.
      log_x: the x axis is logarithmic and has a tick at every x.
      legend: names the curves under the heading; without it the page does.
      references: {label: value} of level lines; those far outside of the curves are left out.
    """
    curves = [curve for curve in curves if np.isfinite(curve.series[1]).any()]
    x = span([curve.series[0] for curve in curves], log=log_x)
    near = _near([curve.series[1] for curve in curves], references or {})
    linear = span([*(curve.series[1] for curve in curves), near])
    if x is None or linear is None:
        return None
    x = x if log_x else _level([curve.series[0] for curve in curves])
    places = sorted({float(at) for curve in curves for at in curve.series[0]}) if log_x else []
    positive = all(np.nanmin(curve.series[1]) > 0 for curve in curves)
    log = span([*(curve.series[1] for curve in curves), near], log=True) if positive else None
    most = max(POINTS // max(len(curves), 1), 60)
    thinned = {curve.key: thin(curve.series, most) for curve in curves}
    steep = log is not None and _steep(np.concatenate([curve.series[1] for curve in curves]))
    views = [_view("linear", curves, thinned, x, linear, references or {})]
    if log is not None:
        views.append(_view("log", curves, thinned, x, log, references or {}))
    figure = h(
        "figure",
        h("figcaption", h("h4", name), _scales(identity, name, steep) if log is not None else None),
        _names(curves) if legend else None,
        h(
            "div",
            *views,
            _x_axis(x, places),
            class_="plot",
            tabindex=0,
            role="group",
            aria_label=_spoken(name, curves, x_label),
        ),
        h("p", x_label, class_="x-label"),
        _values(name, curves, x_label),
        class_="chart",
        data_chart=identity,
        data_x=f"{x.low!r} {x.high!r} {int(log_x)}",
    )
    data = {key: [[_short(v) for v in part.tolist()] for part in series] for key, series in thinned.items()}
    return figure, data


def _near(parts: Sequence[np.ndarray], references: dict[str, float]) -> np.ndarray:
    """The references that the axis makes room for: those not further from the curves than a third of their height."""
    values = np.concatenate([np.zeros(0), *parts])
    values = values[np.isfinite(values)]
    room = np.ptp(values) / 3 if len(values) else 0.0
    return np.array([v for v in references.values() if len(values) and values.min() - room <= v <= values.max() + room])


def _steep(values: np.ndarray) -> bool:
    """Whether positive values are so far apart that a linear axis would show the largest only."""
    low, high = np.quantile(np.log10(values[np.isfinite(values)]), [0.05, 0.95])
    return bool(high - low > math.log10(STEEP))


def _names(curves: Sequence[Curve]) -> Element:
    return h("ul", [h("li", h("span", class_=f"swatch {c.ink}"), c.label) for c in curves], class_="legend")


def _level(parts: Sequence[np.ndarray]) -> Axis:
    """An axis from 0, or from the first value where that lies far from 0, to the last."""
    low, high = min(float(p.min()) for p in parts), max(float(p.max()) for p in parts)
    whole = all((p == np.floor(p)).all() for p in parts)
    if 0 < low < 0.5 * high or 0 < low == high:
        low = 0.0
    return Axis(low, high, whole=whole) if high > low else Axis(low - 1, high + 1, whole=whole)


def _short(value: float) -> float | int | None:
    """Five significant digits; whole numbers whole; NaN as null."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}")


def _scales(identity: str, name: str, steep: bool) -> Element:
    """Two radio buttons."""

    def button(scale: str, chosen: bool) -> Element:
        return h("label", h("input", type="radio", name=f"scale-{identity}", value=scale, checked=chosen), scale)

    legend = h("legend", hidden(f"Scale of {name}"))
    return h("fieldset", legend, button("linear", not steep), button("log", steep), class_="scales")


def _view(
    scale: str, curves: Sequence[Curve], thinned: dict[str, Series], x: Axis, y: Axis, references: dict[str, float]
) -> Element:
    """Grid, level lines and curves on one scale, with the labels of the y axis."""
    marks = y.ticks(5)
    grid = "".join(f"M0,{BOX - at:.0f}H{BOX}" for at, _ in marks)
    inside = {label: float(y.at(value)) for label, value in references.items()}
    inside = {label: at for label, at in inside.items() if 0 <= at <= BOX}
    levels = [h("path", d=f"M0,{BOX - at:.0f}H{BOX}", class_="level") for at in inside.values()]
    drawn = []
    for curve in reversed(curves):  # the first on top
        mean = running_mean(curve.series)
        paths = _paths(thinned[curve.key], x, y, quiet=mean is not None)
        if mean is not None:
            paths.append(h("path", d=_line(thin(mean, 240), x, y), class_="line"))
        happened = [at for at in _rounded(x.at(np.array(curve.marks))) if 0 <= at <= BOX]
        if happened:
            paths.append(h("path", d="".join(f"M{at},{BOX}V{BOX - 60}" for at in happened), class_="mark"))
        drawn.append(h("g", paths, class_=curve.ink, data_key=curve.key, data_name=curve.label))
    picture = h(
        "svg",
        h("path", d=grid, class_="grid"),
        levels,
        drawn,
        viewbox=f"0 0 {BOX} {BOX}",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )
    labels = [h("span", text, style=f"bottom:{at / BOX:.2%}") for at, text in marks]
    names = [h("span", text, style=f"bottom:{at / BOX:.2%}") for text, at in _apart(inside)]
    return h(
        "div",
        picture,
        h("div", labels, class_="y-ticks", aria_hidden="true"),
        h("div", names, class_="levels", aria_hidden="true"),
        class_=f"view {scale}",
    )


def _apart(levels: dict[str, float]) -> list[tuple[str, float]]:
    """The labels of level lines that do not touch, from below; two lines that lie close share one label."""
    placed: list[tuple[str, float]] = []
    for label, at in sorted(levels.items(), key=lambda item: item[1]):
        if placed and at - placed[-1][1] < 0.07 * BOX:
            placed[-1] = (f"{placed[-1][0]}, {label}", placed[-1][1])
        else:
            placed.append((label, at))
    return placed


def _paths(series: Series, x: Axis, y: Axis, *, quiet: bool) -> list[Element]:
    """The line of a curve, and its points where they are few or stand alone."""
    paths = [h("path", d=_line(series, x, y), class_="noise" if quiet else "line")]
    there = np.isfinite(y.at(series[1]))
    near = np.concatenate([[False], there, [False]])
    alone = there & ~near[:-2] & ~near[2:]
    dots = there if len(there) <= FEW else alone
    if dots.any():
        places = zip(_rounded(x.at(series[0][dots])), _rounded(BOX - y.at(series[1][dots])), strict=True)
        paths.append(h("path", d="".join(f"M{a},{b}h0" for a, b in places), class_="dots"))
    return paths


def _line(series: Series, x: Axis, y: Axis) -> str:
    """The path of a line that breaks at gaps."""
    across, up = x.at(series[0]), y.at(series[1])
    pieces, broken = [], True
    for a, b, there in zip(_rounded(across), _rounded(BOX - up), np.isfinite(up).tolist(), strict=True):
        if there:
            pieces.append(f"{'M' if broken else 'L'}{a},{b}")
        broken = not there
    return "".join(pieces)


def _rounded(values: np.ndarray) -> list[int]:
    return np.rint(np.nan_to_num(values)).astype(int).tolist()


def _x_axis(x: Axis, places: Sequence[float]) -> Element:
    """The labels of the x axis: at `places` where those are few, else at round numbers."""
    marks = [(float(x.at(place)), number(place)) for place in places] if 0 < len(places) <= 9 else x.ticks(5)
    labels = [h("span", text, style=f"left:{at / BOX:.2%}") for at, text in marks]
    return h("div", labels, class_="x-ticks", aria_hidden="true")


def _spoken(name: str, curves: Sequence[Curve], x_label: str) -> str:
    """The chart in a sentence."""
    count = f"{len(curves)} {'curve' if len(curves) == 1 else 'curves'}"
    return f"{name} by {x_label}, {count}; arrow keys move the read-out"


def _values(name: str, curves: Sequence[Curve], x_label: str) -> Element:
    """The numbers behind the chart, for who cannot see it or wants them."""
    rows = []
    for curve in curves:
        steps, values = curve.series
        there = np.isfinite(values)
        steps, values = steps[there], values[there]
        lowest, highest = int(values.argmin()), int(values.argmax())
        rows.append(
            (
                h("th", h("span", class_=f"swatch {curve.ink}"), curve.label, scope="row"),
                number(float(values[0]), aligned=True),
                f"{number(float(values[lowest]), aligned=True)} at {number(float(steps[lowest]))}",
                f"{number(float(values[highest]), aligned=True)} at {number(float(steps[highest]))}",
                f"{number(float(values[-1]), aligned=True)} at {number(float(steps[-1]))}",
                len(values),
            )
        )
    numbers = table(
        ("", "first", "lowest", "highest", "last", "points"), rows, caption=f"{name} by {x_label}", class_="numbers"
    )
    summary = h("summary", "Numbers", hidden(f" of {name}"))
    region = {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": f"Numbers of {name}"}
    return h("details", summary, h("div", numbers, **region), class_="values")

"""Numbers as a reader wants them: four digits, thin groups, durations; and the ticks of an axis."""

import math
from typing import Any

import numpy as np

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value: Any, digits: int = 4, *, aligned: bool = False) -> str:
    """Four significant digits, whole numbers in full with groups of three; a dash for nothing.

    Args:
      aligned: 3.12 as 3.120, for columns of measurements.
    """
    if value is None or value == "":
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if float_of(value) is None:
        return f"about 10^{len(str(abs(value))) - 1}" if abs(value) < 10**4000 else "a huge number"
    if aligned and isinstance(value, float) and 1e-4 <= abs(value) < 10 ** (digits - 1):
        text = f"{value:#.{digits}g}"
    elif value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    elif 1e-4 <= abs(value) < 1e6:
        text = f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else number(round(value))
    else:
        text = scientific(value, digits)
    return text.replace("-", MINUS)


def scientific(value: float, digits: int = 3) -> str:
    """2.1e-06 as 2.1·10⁻⁶."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}\N{MIDDLE DOT}10{power}"


def float_of(value: Any) -> float | None:
    """`value` as a finite float, None where it is no number or none that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def duration(seconds: Any) -> str:
    """3725 as 1 h 02 min."""
    value = float_of(seconds)
    if value is None or value < 0:
        return DASH
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ticks(low: float, high: float, *, log: bool, count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers between `low` and `high`, about `count` of them; on a log axis powers of ten where they suffice.

    Args:
      whole: only whole numbers.
    """
    from matplotlib.ticker import MaxNLocator

    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        powers = [10.0**e for e in range(first, last + 1)]
        if len(powers) >= 3:
            return powers[:: math.ceil(len(powers) / (count + 1))]
        within = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 3, 5, 7)]
        found = [value for value in within if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 2:
            return found[:: math.ceil(len(found) / (count + 1))]
    values = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    edge = 1e-9 * (high - low)
    return [float(v) for v in values if low - edge <= v <= high + edge]


def tick_labels(values: list[float]) -> list[str]:
    """Labels of an axis, all with the same number of decimals; thousands as k, millions as M."""
    if not values:
        return []
    top = max(abs(v) for v in values)
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if top >= bound and all(v == 0 or abs(v) >= bound / 1e4 for v in values) and top < 1e13:
            scale = {"G": 1e9, "M": 1e6, "k": 1e3}[unit]
            return [f"{v / scale:.4g}{unit}".replace("-", MINUS) if v else "0" for v in values]
    if top >= 1e13 or top < 1e-3:
        return [scientific(v) if v else "0" for v in values]
    gaps = np.diff(sorted(values))
    step = float(gaps.min()) if len(gaps) else top
    if len(gaps) and gaps.max() > 2 * step:  # a log axis: each value by itself
        return [f"{v:.3g}" if min(values) >= 1e-3 else scientific(v) for v in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    decimals += any(abs(round(v, decimals) - v) > 0.01 * step for v in values)
    return [f"{v:.{min(decimals, 6)}f}".replace("-", MINUS) for v in values]

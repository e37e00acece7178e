"""Draws the orders of evaluation: `python -m paperlab.recurrence.pictures` writes orders.svg and grids.svg beside this file.

Each order is run on symbols that remember what they were made from, so depth and dependencies are those of the recursion, not of
a sketch. In orders.svg time runs to the right and dependent steps run down; in grids.svg the number at a node is the step that it
waits for.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
INK, FAINT, ACCENT = "#5b6b7f", "#a9b4c2", "#c2571a"
SHADES = ("#cfe0f3", "#a9c8e8", "#7faad8", "#5a8bc4", "#3c6da9", "#28528a", "#193a69", "#10284b")


@dataclass(frozen=True)
class Value:
    """A result: where it stands in time, how many steps it waited for, and what it was made from."""

    place: float
    depth: int = 0
    parents: tuple["Value", ...] = field(default=(), compare=False)


def made(*parents: Value, place: float | None = None) -> Value:
    """What comes of combining `parents`, the latest of them last."""
    return Value(parents[-1].place if place is None else place, 1 + max(p.depth for p in parents), parents)


def sequential(x: list[Value]) -> list[Value]:
    """One after another."""
    out = [x[0]]
    for now in x[1:]:
        out.append(made(out[-1], now))
    return out


def associative(x: list[Value]) -> list[Value]:
    """The recursion of lax.associative_scan: pairs, a scan of the pairs, then the places between."""
    if len(x) < 2:
        return x
    odd = associative([made(a, b) for a, b in zip(x[::2], x[1::2], strict=False)])
    even = [x[0]] + [made(a, b) for a, b in zip(odd, x[2::2], strict=False)]
    return [value for pair in zip(even, [*odd, None], strict=False) for value in pair if value is not None][: len(x)]


def chunked(x: list[Value], chunk: int = 4) -> list[Value]:
    """Associative inside chunks, one chunk after another between them, one more step for every place."""
    local = [associative(x[i : i + chunk]) for i in range(0, len(x), chunk)]
    exits = sequential([part[-1] for part in local])
    out = list(local[0])
    for entering, part in zip(exits, local[1:], strict=False):
        out += [made(entering, value) for value in part]
    return out


def newton(x: list[Value], iterations: int = 2) -> list[Value]:
    """Guess every state, then: every step and its Jacobian at once, and one associative scan, a few times."""
    h = [made(value) for value in x]
    for _ in range(iterations):
        level = max(value.depth for value in h)
        steps = [Value(value.place, level + 1, (value,)) for value in h]
        h = associative(steps)
    return h


def tree_fold(x: list[Value]) -> list[Value]:
    """Pairs of pairs; an odd last one is carried up."""
    while len(x) > 1:
        pairs = [made(a, b, place=(a.place + b.place) / 2) for a, b in zip(x[::2], x[1::2], strict=False)]
        x = pairs + x[2 * len(pairs) :]
    return x


ORDERS: dict[str, tuple[Callable[[list[Value]], list[Value]], int]] = {
    "sequential": (sequential, 16),
    "associative": (associative, 16),
    "chunked, C = 4": (chunked, 16),
    "newton, 2 iterations": (newton, 16),
    "tree_fold of 13": (tree_fold, 13),
}


def orders_svg() -> str:
    """Every order over a sequence, side by side."""
    panels, x = [], 0
    for title, (order, length) in ORDERS.items():
        last = order([Value(i) for i in range(length)])
        panels.append(_panel(title, last, x))
        x += 220
    return _svg(x - 20, 250, panels)


def _panel(title: str, last: list[Value], left: int) -> str:
    known = _everything(last)
    deepest = max(value.depth for value in known)
    down = 178 / max(deepest, 1)

    def at(value: Value) -> tuple[float, float]:
        return left + 14 + value.place * 11.6, 52 + value.depth * down

    lines = []
    for value in known:
        for parent in value.parents:
            (x1, y1), (x2, y2) = at(parent), at(value)
            lines.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{FAINT}" stroke-width="0.8"/>')
    ends = set(map(id, last))
    dots = []
    for value in known:
        x, y = at(value)
        color = ACCENT if id(value) in ends else INK
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>')
    steps = f"{deepest} dependent steps"
    return "".join([_text(left + 4, 16, title, bold=True), _text(left + 4, 32, steps), *lines, *dots])


def _everything(last: Iterable[Value]) -> list[Value]:
    seen: dict[int, Value] = {}
    waiting = list(last)
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            waiting += value.parents
    return sorted(seen.values(), key=lambda value: (value.depth, value.place))


def grids_svg(size: int = 8, chunk: int = 2) -> str:
    """The three orders over a grid, and the levels of a graph."""
    nodes = {(x, y): x * size + y for x in range(size) for y in range(size)}
    waves = {(x, y): x // chunk + y // chunk for x, y in nodes}
    merges = dict.fromkeys(nodes, 0)
    half = (size // chunk * 2) - 1
    panels = [
        _grid("nodes", f"{size * size} dependent steps", nodes, size, 0),
        _grid(f"wavefront, blocks of {chunk} x {chunk}", f"{half} dependent steps", waves, size, 220, chunk),
        _grid("hierarchical", f"{2 * (size.bit_length() - 1)} merges", merges, size, 440, nested=True),
        _graph(660),
    ]
    return _svg(860, 250, panels)


def _grid(title: str, steps: str, order: dict, size: int, left: int, chunk: int = 0, *, nested: bool = False) -> str:
    cell = 180 / size
    most = max(order.values()) or 1
    parts = [_text(left + 4, 16, title, bold=True), _text(left + 4, 32, steps)]
    for (x, y), step in order.items():
        shade = SHADES[step * (len(SHADES) - 1) // most] if most > 1 else SHADES[0]
        px, py = left + 4 + x * cell, 46 + y * cell
        parts.append(
            f'<rect x="{px:.1f}" y="{py:.1f}" width="{cell - 1.5:.1f}" height="{cell - 1.5:.1f}" rx="2" fill="{shade}"/>'
        )
        if not nested:
            color = "#ffffff" if step * 2 > most else "#10284b"
            parts.append(
                _text(px + cell / 2 - 0.7, py + cell / 2 + 2.6, str(step), size=8, anchor="middle", color=color)
            )
    widths = [2**i for i in range(1, size.bit_length())] if nested else [chunk] if chunk else []
    for width in widths:
        thick = 0.8 + 0.5 * widths.index(width)
        for x in range(0, size, width):
            for y in range(0, size, width):
                px, py = left + 3.2 + x * cell, 45.2 + y * cell
                side = width * cell - 0.4
                parts.append(
                    f'<rect x="{px:.1f}" y="{py:.1f}" width="{side:.1f}" height="{side:.1f}" rx="3" fill="none" '
                    f'stroke="{ACCENT}" stroke-width="{thick:.1f}"/>'
                )
    return "".join(parts)


GRAPH = {0: (20, 70), 1: (20, 150), 2: (75, 60), 3: (80, 120), 4: (80, 185), 5: (135, 90), 6: (140, 160), 7: (185, 125)}
GRAPH_EDGES = ((0, 2), (0, 3), (1, 3), (1, 4), (2, 5), (3, 5), (3, 6), (4, 6), (5, 7), (6, 7), (2, 3))


def _graph(left: int) -> str:
    """A small graph, its edges by level: states stand on edges."""
    import numpy as np

    from paperlab.recurrence.dag import arcs_of, levels

    edges = np.array(GRAPH_EDGES)
    level = levels(len(edges), arcs_of(edges))
    parts = [_text(left + 4, 16, "dag, levels", bold=True), _text(left + 4, 32, f"{level.max() + 1} dependent steps")]
    for (a, b), step in zip(GRAPH_EDGES, level, strict=True):
        (x1, y1), (x2, y2) = GRAPH[a], GRAPH[b]
        color = SHADES[2 + 5 * int(step) // int(level.max())]
        parts.append(f'<path d="M{left + x1} {y1}L{left + x2} {y2}" stroke="{color}" stroke-width="2.2"/>')
        parts.append(_text(left + (x1 + x2) / 2, (y1 + y2) / 2 - 4, str(step), size=9, anchor="middle"))
    parts += [f'<circle cx="{left + x}" cy="{y}" r="4" fill="{ACCENT}"/>' for x, y in GRAPH.values()]
    return "".join(parts)


def _text(
    x: float, y: float, text: str, *, bold: bool = False, size: int = 12, anchor: str = "start", color: str = INK
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}>{text}</text>'
    )


def _svg(width: int, height: int, parts: list[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img">\n{body}\n</svg>\n'
    )


PICTURES = {"orders.svg": orders_svg, "grids.svg": grids_svg}


def depth(order: Callable[[list[Value]], list[Value]], length: int) -> int:
    """Dependent steps of an order over `length` places."""
    return max(value.depth for value in _everything(order([Value(i) for i in range(length)])))


def main() -> None:
    """Writes the pictures."""
    argparse.ArgumentParser(prog="python -m paperlab.recurrence.pictures", description=__doc__).parse_args()
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Values of unknown shape as readable text and small tables."""

import json
import re
from typing import Any

from paperlab.report.elements import Element, h, table
from paperlab.report.numbers import float_of, number

LONGEST = 400
DEEPEST = 4
MOST_ROWS = 200


def shown(value: Any) -> str:
    """A value as the text of one cell."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return number(None)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list) and all(not isinstance(item, list | dict) for item in value):
        return shortened(", ".join(shown(item) for item in value)) if value else "none"
    if isinstance(value, list | dict):
        try:
            return shortened(json.dumps(value, ensure_ascii=False))
        except RecursionError:
            return "nested too deeply"
    return shortened(str(value)) if value != "" else "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"


def baseline_name(name: str) -> str:
    """`gzip9` as gzip -9, the command that it is; others in words."""
    return re.sub(r"^(gzip|xz)(\d)$", r"\1 -\2", name).replace("_", " ")


def shortened(text: str, most: int = LONGEST) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def facts(value: dict[str, Any], depth: int = 0) -> Element:
    """A dictionary as terms and what they say; dictionaries in it likewise."""
    items = []
    for name, item in list(value.items())[:MOST_ROWS]:
        inner: Any = shown(item)
        if isinstance(item, dict) and item and depth < DEEPEST:
            matrix = _matrix(item)
            inner = facts(item, depth + 1) if matrix is None else matrix
        items += [h("dt", name.replace("_", " ")), h("dd", inner)]
    return h("dl", items, class_="facts")


def sections(value: dict[str, Any]) -> Element:
    """A long dictionary in columns: what stands by itself first, then one block for every dictionary in it."""
    plain = {name: item for name, item in value.items() if not isinstance(item, dict)}
    blocks = [h("div", facts(plain))] if plain else []
    for name, item in value.items():
        if isinstance(item, dict):
            blocks.append(h("div", h("h5", name.replace("_", " ")), facts(item, 1)))
    return h("div", blocks, class_="sections")


def _matrix(value: dict[str, Any]) -> Element | None:
    """{row: [numbers]} as a table where all rows are equally long."""
    lengths = {len(row) if isinstance(row, list) else 0 for row in value.values()}
    if len(lengths) != 1 or not 1 < next(iter(lengths)) <= 8:
        return None
    if not all(item is None or float_of(item) is not None for row in value.values() for item in row):
        return None
    header = ["", *(f"{i + 1}" for i in range(lengths.pop()))]
    rows = [[str(name).replace("_", " "), *(number(item) for item in row)] for name, row in value.items()]
    return table(header, rows, caption="one column a seed or measurement", class_="numbers")


def scroll(content: Element, label: str, *, tall: bool = False) -> Element:
    """What may be wider than a phone (or, if `tall`, longer than a screen): scrolls by itself, the page does not."""
    return h("div", content, class_="scroll tall" if tall else "scroll", tabindex=0, role="region", aria_label=label)


def problems(messages: list[str]) -> Element | None:
    """What is damaged, said where it belongs."""
    return h("ul", [h("li", message) for message in messages], class_="problems") if messages else None

"""HTML as a tree: text is escaped because nothing but the tree is ever written.

h("td", "1 < 2", class_="number") is an element; children are elements, texts, lists of those, or None (left out).
"""

import re
from collections.abc import Iterable
from typing import Any
from xml.etree.ElementTree import Element, tostring

__all__ = ["Element", "h", "hidden", "table", "to_html"]

# What a browser would replace or choke on: control characters but tab and newline, and lone surrogates.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def h(tag: str, *children: Any, **attributes: Any) -> Element:
    """An element.

    Args:
      tag: its name.
      children: elements, texts, numbers, iterables of those; None is left out.
      attributes: a trailing underscore is dropped (`class_`, `for_`), other underscores become hyphens (`aria_label`);
        None and False are left out, True is an attribute without a value.
    """
    element = Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            name = name.removesuffix("_").replace("_", "-").replace("viewbox", "viewBox")
            element.set(name, "" if value is True else clean(str(value)))
    _add(element, children)
    return element


def _add(element: Element, children: Iterable[Any]) -> None:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            element.append(child)
        elif isinstance(child, Iterable) and not isinstance(child, str):
            _add(element, child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + clean(str(child))
        else:
            element.text = (element.text or "") + clean(str(child))


def clean(text: str) -> str:
    """`text` without the characters that no page can hold; each becomes a visible replacement character."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def hidden(*children: Any) -> Element:
    """For screen readers only."""
    return h("span", *children, class_="hidden")


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]], *, caption: str, **attributes: Any) -> Element:
    """A table with a caption and a header; the first cell of every row is the row's header.

    Args:
      header, rows: cells are texts or elements; an element that is already `td` or `th` is taken as it is.
      caption: says what the table holds; for screen readers.
    """
    head = [cell if _is_cell(cell) else h("th", cell, scope="col") for cell in header]
    body = []
    for row in rows:
        first, *rest = row
        cells = [first if _is_cell(first) else h("th", first, scope="row")]
        body.append(h("tr", cells, [cell if _is_cell(cell) else h("td", cell) for cell in rest]))
    return h("table", h("caption", hidden(caption)), h("thead", h("tr", head)), h("tbody", body), **attributes)


def _is_cell(value: Any) -> bool:
    return isinstance(value, Element) and value.tag in ("td", "th", "tr")


def to_html(root: Element) -> str:
    """The document as text. Scripts and styles are written as they are, so they may not hold their own end tag."""
    for element in root.iter():
        if element.tag in ("script", "style") and "</" in (element.text or ""):
            raise ValueError(f"<{element.tag}> holds an end tag")
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"

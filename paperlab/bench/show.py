"""Benchmarks in the terminal: every case with its spread and its other numbers, then the aims."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

KNOWN = {"bench", "case", "ms", "spread", "rounds"}


def case_table(row: dict[str, Any]) -> Table:
    """One line a measured thing: median, quartiles, ratio to the first of the case; below, what else was found."""
    case = ", ".join(f"{name} {value}" for name, value in row["case"].items())
    also = ", ".join(f"{name} {_number(value)}" for name, value in row.items() if name not in KNOWN)
    table = Table(title=case, caption=also, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.add_column("", min_width=28)
    for name in ("ms", "quartiles", "ratio"):
        table.add_column(name, justify="right", min_width=8)
    base = next(iter(row["ms"].values()), None)
    for label, value in row["ms"].items():
        ratio = f"{value / base:.3f}" if base and value is not None else ""
        table.add_row(label, _number(value), " .. ".join(map(_number, row["spread"][label])), ratio)
    return table


def aims_table(aims: Sequence[dict[str, Any]]) -> Table:
    """One line an aim, met or not."""
    table = Table(title="aims", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "found", "aim", "met"):
        table.add_column(name, justify="right" if name in ("found", "aim") else "left", overflow="fold")
    for aim in aims:
        wanted = f"{aim['comparison']} {aim['aim']:,g} {aim['unit']}"
        table.add_row(aim["what"], _number(aim["value"]), wanted, "yes" if aim["met"] else "no")
    return table


def show(title: str, rows: Sequence[dict[str, Any]], aims: Sequence[dict[str, Any]]) -> None:
    """Prints a benchmark."""
    console = Console()
    console.print(f"\n[bold]{title}[/bold]")
    for row in rows:
        console.print(case_table(row))
    if aims:
        console.print(aims_table(aims))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str("-" if value is None else value)
    )

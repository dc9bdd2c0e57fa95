"""What the commands print: tables for people, JSON for programs, sparklines."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def print_json(value: Any) -> None:
    """Print a value as JSON, for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows under their columns; numbers stand right. `empty` is said where there are none."""
    kept = [list(row) for row in rows]
    if not kept:
        print(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for position, column in enumerate(columns):
        values = [row[position] for row in kept if row[position] is not None]
        numeric = bool(values) and all(isinstance(value, int | float | Decimal) for value in values)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in kept:
        table.add_row(*(Text(show(value)) for value in row))
    # Made here: it keeps the width that COLUMNS has when it is made.
    Console().print(table)


def show(value: Any) -> str:
    """Return a value as people read it: `1,234`, `yes`, `2026-11-21 10:00`; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | Decimal):
        return f"{Decimal(value):,f}"
    if isinstance(value, float):
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def usd(text: str | None) -> Decimal | None:
    """Return an amount that crossed the wire as text."""
    return None if text is None else Decimal(text)


def moment(text: str | None) -> str | None:
    """Return a time to the minute, in this machine's zone."""
    if text is None:
        return None
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")


def sparkline(values: Sequence[float]) -> str:
    """Return one block for each value, its height from none to the largest; a space for nothing."""
    most = max(values, default=0)
    if most <= 0:
        return " " * len(values)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(value / most * steps)] if value > 0 else " " for value in values)

"""Small tables, for files and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def cell(value: Any) -> str:
    """Return a value as a table shows it: numbers with four significant digits, nothing as a dash."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    cells = [[" ".join(cell(value).replace("|", "\\|").split("\n")) for value in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def terminal_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table for the terminal; keys lose all but their last part to fit 80 columns."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.rsplit(".", 1)[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    return table

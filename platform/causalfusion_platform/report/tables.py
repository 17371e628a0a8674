"""Small tables, for files and for the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from .numbers import significant

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def cell(value: Any) -> str:
    """Return a value as a table shows it: numbers with four significant digits, nothing as a dash."""
    if value is None:
        return "–"
    return significant(value) if isinstance(value, float) else str(value)


def plain(value: Any) -> str:
    """Return a value of a configuration as text: strings as they are, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, aligned: bool = False) -> str:
    """Return a Markdown table. Aligned, its source reads as a table, too."""
    lines = [[_in_markdown(value) for value in row] for row in (columns, *rows)]
    widths = [max(3, *map(cell_len, column)) if aligned else 0 for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * max(width, 3) for width in widths])
    padded = ([_padded(text, width) for text, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _in_markdown(value: Any) -> str:
    return " ".join(cell(value).replace("|", "\\|").split("\n"))


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def terminal_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table for the terminal. Dotted keys lose all but their last part to fit 80 columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(column.rsplit(".", 1)[-1] if _KEY.fullmatch(column) else column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    return table


def facts_grid() -> Table:
    """Return an empty table for the terminal: names in bold, and texts that are folded where they are long."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid

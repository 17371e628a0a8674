"""A table's report on a terminal, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..tables import facts_grid
from .content import Grid, stacked
from .report import PaperReport
from .statistics import Verdict
from .words import budget, caveats, claim_text, heading, key, missing, notes, orderings

_WIDTH = 80
_LABEL = 26
_STYLES: dict[Verdict, str] = {"holds": "green", "fails": "red", "undecided": "yellow", "not measured": "dim"}


def render_terminal(report: PaperReport) -> Group:
    """Return the table, the verdicts, the budget and the limits.

    Of a row the printed values stand above ours. Columns that do not fit go into further tables below.
    """
    parts: list[RenderableType] = [Text(f"{heading(report)}, scale {report.scale}", style="bold")]
    grid = stacked(report)
    parts += [_table(grid, places) for places in _blocks(grid)]
    parts += [
        *map(Text, (key(report), *notes(report))),
        *(Text(line, style="yellow") for line in missing(report)),
        Text(""),
    ]
    parts += [_verdicts(report), Text(""), _facts({**budget(report), "limits": "\n".join(caveats(report))})]
    return Group(*parts)


def _table(grid: Grid, places: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(grid.columns[0]), overflow="fold", max_width=_LABEL)
    table.add_column("")
    for place in places:
        table.add_column(Text(grid.columns[place]), justify="right", no_wrap=True)
    for label, whose, *texts in grid.rows:
        style = "dim" if whose == "paper" else ""
        table.add_row(
            Text(label), *(Text(text, style) for text in (whose, *(texts[place - 2] for place in places)))
        )
    return table


def _blocks(grid: Grid) -> list[list[int]]:
    """Return the places of the columns of each table, as many as fit."""
    label, whose, *widths = (
        max(cell_len(line[place]) for line in (grid.columns, *grid.rows)) + 2 for place in range(len(grid.columns))
    )
    room = _WIDTH - min(_LABEL + 2, label) - whose
    blocks: list[list[int]] = [[]]
    left = room
    for place, width in enumerate(widths, start=2):
        if blocks[-1] and width > left:
            blocks.append([])
            left = room
        blocks[-1].append(place)
        left -= width
    return blocks


def _verdicts(report: PaperReport) -> Table:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for claim in orderings(report):
        rows.add_row(Text(claim.verdict, style=_STYLES[claim.verdict]), Text(claim_text(claim)))
    return rows


def _facts(facts: dict[str, str]) -> Table:
    rows = facts_grid()
    for name, text in facts.items():
        if text:
            rows.add_row(Text(name), Text(text))
    return rows

"""A table's report on a terminal, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .report import PaperReport
from .statistics import Verdict
from .words import arrow, budget, caveats, cell_texts, claim_text, heading, key, missing, notes, orderings

_WIDTH = 80
_LABEL = 26
_STYLES: dict[Verdict, str] = {"holds": "green", "fails": "red", "undecided": "yellow", "not measured": "dim"}


def render_terminal(report: PaperReport) -> Group:
    """Return the table, the verdicts, the budget and the limits.

    Of a row the printed values stand above ours. Columns that do not fit go into further tables below.
    """
    parts: list[RenderableType] = [Text(f"{heading(report)}, scale {report.scale}", style="bold")]
    parts += [_table(report, places) for places in _blocks(report)]
    parts += [
        *map(Text, (key(report), *notes(report))),
        *(Text(line, style="yellow") for line in missing(report)),
        Text(""),
    ]
    parts += [_verdicts(report), Text(""), _facts({**budget(report), **_limits(caveats(report))})]
    return Group(*parts)


def _table(report: PaperReport, places: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(report.table.varied, overflow="fold", max_width=_LABEL)
    table.add_column("")
    for place in places:
        column = report.table.columns[place]
        table.add_column(Text(f"{column.name} {arrow(column)}"), justify="right", no_wrap=True)
    for row, cells in zip(report.rows, cell_texts(report), strict=True):
        table.add_row(
            Text(row.label), Text("paper", style="dim"), *(Text(cells[place][0], style="dim") for place in places)
        )
        table.add_row("", "ours", *(Text(cells[place][1]) for place in places))
    return table


def _blocks(report: PaperReport) -> list[list[int]]:
    """Return the places of the columns of each table, as many as fit."""
    texts = cell_texts(report)
    room = _WIDTH - 2 - len("paper") - 2
    room -= min(_LABEL, max(map(cell_len, [report.table.varied, *(row.label for row in report.rows)])))
    blocks: list[list[int]] = [[]]
    left = room
    for place, column in enumerate(report.table.columns):
        width = (
            max(cell_len(text) for text in (f"{column.name} ↓", *(ours for line in texts for ours in line[place])))
            + 2
        )
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


def _limits(texts: list[str]) -> dict[str, str]:
    return {"limits": "\n".join(texts)} if texts else {}


def _facts(facts: dict[str, str]) -> Table:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    for name, text in facts.items():
        rows.add_row(Text(name), Text(text))
    return rows

"""Time of a run by its parts, as bars."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ...tracking.accounting import Account
from ..numbers import clock

_BAR = 30
_MEANING = {
    "useful": "new steps",
    "redone": "steps lost or repeated",
    "data": "waiting for batches",
    "checkpoint": "stalls for checkpoints",
    "grid": "sample grids",
    "other": "metrics and the rest of the loop",
    "start": "launch to training",
    "recovery": "incident to training",
    "end": "final samples, scores",
}


def goodput_table(found: Account) -> Table:
    """Return the seconds and share of each category, useful steps first, and what was lost to each cause."""
    elapsed = found.elapsed_seconds
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    parts = sorted(found.seconds.items(), key=lambda item: (item[0] != "useful", -item[1]))
    for category, seconds in parts:
        share = seconds / elapsed
        if category != "useful" and share < 0.0005:
            continue
        table.add_row(category, clock(seconds), f"{share:.1%}", _bar(share, category))
    for cause, seconds in sorted(found.by_cause.items(), key=lambda item: -item[1]):
        table.add_row("", clock(seconds), f"{seconds / elapsed:.1%}", Text(f"lost to: {cause}"))
    return table


def _bar(share: float, category: str) -> Text:
    eighths = round(share * _BAR * 8)
    bar = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
    style = "green" if category == "useful" else "yellow"
    return Text.assemble((bar, style), f"{' ' if bar else ''}{_MEANING[category]}")

"""Time of a run by its parts, as bars."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ...tracking.accounting import Account
from ..numbers import clock, share

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
    "end": "after the last report",
}
_END_OF_FINISHED = "final samples, scores"


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
        part = seconds / elapsed
        if category != "useful" and part < 0.0005:
            continue
        table.add_row(category, clock(seconds), share(part, 1), _bar(part, _meaning(category, found)))
    for cause, seconds in sorted(found.by_cause.items(), key=lambda item: -item[1]):
        table.add_row("", clock(seconds), share(seconds / elapsed, 1), Text(f"lost to: {cause}"))
    return table


def _meaning(category: str, found: Account) -> str:
    """Return the meaning of a category. A run that has not finished has no final samples."""
    return _END_OF_FINISHED if category == "end" and found.status == "finished" else _MEANING[category]


def _bar(part: float, meaning: str) -> Text:
    eighths = round(part * _BAR * 8)
    bar = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
    style = "green" if meaning == _MEANING["useful"] else "yellow"
    return Text.assemble((bar, style), f"{' ' if bar else ''}{meaning}")

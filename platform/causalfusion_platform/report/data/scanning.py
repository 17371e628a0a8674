"""Progress of a pass over shards."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_EVERY_SECONDS = 10.0


class RowsDisplay:
    """A progress bar on a terminal, gone when done, and a line every ten seconds elsewhere."""

    def __init__(self, console: Console, doing: str) -> None:
        self.console = console
        self.doing = doing
        self.started = self.printed_at = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task(doing, total=None, numbers="")

    def __enter__(self) -> RowsDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show how many rows are done."""
        now = time.monotonic()
        numbers = f"{done / max(now - self.started, 1e-9):,.0f} rows/s"
        self.bar.update(self.task, total=total, completed=done, numbers=numbers)
        if not self.console.is_terminal and now - self.printed_at >= _PLAIN_EVERY_SECONDS:
            self.printed_at = now
            self.console.print(f"{self.doing} {done}/{total} rows  {numbers}", highlight=False, soft_wrap=True)

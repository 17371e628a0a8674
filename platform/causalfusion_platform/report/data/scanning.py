"""Progress of a pass over shards."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import TimeRemainingColumn

from ..bar import BarDisplay


class RowsDisplay(BarDisplay):
    """Progress of a pass. Its bar is gone when done."""

    unit, says_end = "rows", False

    def __init__(self, console: Console, doing: str) -> None:
        super().__init__(console, TimeRemainingColumn(), transient=True)
        self.doing = self.starting = doing
        self.started = time.monotonic()

    def show(self, done: int, total: int) -> None:
        """Show how many rows are done."""
        self.draw(done, total, f"{done / max(time.monotonic() - self.started, 1e-9):,.0f} rows/s")

"""Progress bar that all displays of a single job share."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn

_PLAIN_EVERY_SECONDS = 10.0


class BarDisplay:
    """A progress bar on a terminal, and a line every ten seconds elsewhere (a log file, a submitted job)."""

    doing: str
    unit: str
    starting: str = ""
    """Text at the bar until the first report."""
    says_end: bool = True
    """Elsewhere, print a line at the end too."""

    def __init__(self, console: Console, *columns: ProgressColumn, transient: bool = False) -> None:
        """Make a bar of 80 columns, with free text at its right.

        Args:
            console: a terminal or a file.
            columns: further columns at the right.
            transient: remove the bar at the end.
        """
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            *columns,
            console=console,
            disable=not console.is_terminal,
            transient=transient,
        )
        self.task: TaskID | None = None
        self.printed_at = time.monotonic()
        self.done = 0

    def __enter__(self) -> Self:
        self.bar.start()
        self.task = self.bar.add_task("start", total=None, numbers=self.starting)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def draw(self, done: int, total: int, numbers: str) -> None:
        """Show how much is done, with `numbers` at the right."""
        assert self.task is not None
        self.bar.update(self.task, description=self.doing, total=total, completed=done, numbers=numbers)
        due = time.monotonic() - self.printed_at >= _PLAIN_EVERY_SECONDS
        ended = self.says_end and done == total != self.done
        self.done = done
        if not self.console.is_terminal and (due or ended):
            self.printed_at = time.monotonic()
            line = f"{self.doing} {done}/{total} {self.unit}  {numbers}"
            self.console.print(line, highlight=False, soft_wrap=True)

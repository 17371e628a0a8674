"""Progress bar that all displays of a single job share."""

from __future__ import annotations

import threading
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from .numbers import clock

_FIRST_LINE_SECONDS = 3.0
_PLAIN_EVERY_SECONDS = 10.0
_LOOK_SECONDS = 0.5


class BarDisplay:
    """A progress bar on a terminal. Elsewhere (a log file, a submitted job) a line after 3 s, then every 10 s.

    These lines appear also while the job reports nothing.
    """

    doing: str
    unit: str
    starting: str = ""
    """Text at the bar until the first report."""
    says_end: bool = True
    """Elsewhere, print a line at the end too."""
    part: str = ""
    """Name of the part under way, for lines without a report."""

    def __init__(self, console: Console, *, transient: bool = False) -> None:
        """Make a bar of 80 columns, with free text at its right.

        Args:
            console: a terminal or a file.
            transient: remove the bar at the end.
        """
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            _Numbers(),
            console=console,
            disable=not console.is_terminal,
            transient=transient,
            redirect_stdout=not console.stderr,
        )
        self.task: TaskID | None = None
        self.done, self.total = 0, 0
        self.started = time.monotonic()
        self.due = self.started + _FIRST_LINE_SECONDS
        self._over = threading.Event()
        self._printing = threading.Lock()
        self._watch = threading.Thread(target=self._look, name="progress display", daemon=True)

    def __enter__(self) -> Self:
        self.bar.start()
        self.task = self.bar.add_task(self.doing, total=None, numbers=self.starting)
        if not self.console.is_terminal:
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._watch.is_alive():
            self._watch.join()
        self.bar.stop()

    def draw(self, done: int, total: int, numbers: str, *, at_once: bool = False) -> None:
        """Show how much is done, with `numbers` at the right. `at_once`: elsewhere, print the line now."""
        assert self.task is not None
        self.bar.update(self.task, total=total, completed=done, numbers=numbers)
        ended = self.says_end and done == total != self.done
        self.done, self.total = done, total
        self._print(f"{self.doing} {done}/{total} {self.unit}  {numbers}", at_once=at_once or ended)

    def look(self) -> None:
        """Elsewhere than on a terminal, print a line if it is time for one."""
        since = clock(time.monotonic() - self.started)
        state = f": {self.starting}" if self.starting else ""
        if self.total:
            state = f" {self.done}/{self.total} {self.unit}" + (f"  {self.part}" if self.part else "")
        self._print(f"{self.doing}{state}  {since} since the start")

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self.look()

    def _print(self, line: str, *, at_once: bool = False) -> None:
        with self._printing:
            now = time.monotonic()
            if not self.console.is_terminal and (at_once or now >= self.due):
                self.due = now + _PLAIN_EVERY_SECONDS
                self.console.print(line, highlight=False, soft_wrap=True)


class CountDisplay(BarDisplay):
    """Progress of work that is counted. Its bar is gone when done."""

    says_end = False

    def __init__(self, console: Console, doing: str, unit: str = "", *, starting: str = "") -> None:
        """Make a bar.

        Args:
            console: a terminal or a file.
            doing: the work, such as `verify`.
            unit: plural of its parts, such as `rows`.
            starting: text at the bar until the first report, or for all of it if there are none.
        """
        super().__init__(console, transient=True)
        self.doing, self.unit, self.starting = doing, unit, starting
        self.first: tuple[int, float] | None = None

    def show(self, done: int, total: int) -> None:
        """Show how many parts are done. Their speed is that since the first report."""
        now = time.monotonic()
        before, since = self.first or (0, self.started)
        rate = (done - before) / max(now - since, 1e-9)
        self.first = self.first or (done, now)
        left = f"  ETA {clock((total - done) / rate)}" if rate else ""
        self.draw(done, total, f"{rate:{',.0f' if rate >= 100 else '.3g'}} {self.unit}/s{left}")


class _Numbers(ProgressColumn):
    """Free text of a bar. Until the first report, also the time since the start."""

    def render(self, task: Task) -> Text:
        text = str(task.fields["numbers"])
        return Text(text if task.total is not None else f"{text}  {clock(task.elapsed or 0)}".lstrip())

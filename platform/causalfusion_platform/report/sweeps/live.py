"""Display of a sweep under way: a table of its trials, or a line when one changes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ..numbers import clock, share
from ..tables import cell

State = Literal["waiting", "running", "finished", "ended early", "failed", "stopped"]
_MARKS: dict[State, str] = {
    "waiting": "[dim]waiting[/]",
    "running": "[cyan]running[/]",
    "finished": "[green]finished[/]",
    "ended early": "[yellow]ended early[/]",
    "failed": "[red]failed[/]",
    "stopped": "[yellow]stopped[/]",
}
_OVER: tuple[State, ...] = ("finished", "ended early", "failed", "stopped")
_MOST_ROWS = 24
_MOST_NAMED = 3
_REFRESH_SECONDS = 1.0
_PLAIN_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class TrialView:
    """One trial, as it stands."""

    name: str
    state: State
    images: int = 0
    """Images seen."""
    total: int = 0
    """Images of a whole trial."""
    loss: float | None = None
    metric: float | None = None
    """Newest value of the metric that ranks trials."""
    note: str = ""
    """Such as whose weights it went on from, or why it failed."""


class SweepDisplay(Protocol):
    """Receives the state of all trials about once a second."""

    def show(self, trials: Sequence[TrialView]) -> None:
        """Show them."""


class LiveTable:
    """A table that is drawn anew on a terminal.

    Elsewhere: a line for each trial that begins or ends, and one every half minute while all go on.
    """

    def __init__(self, console: Console, metric: str) -> None:
        self.console, self.metric = console, metric
        self.states: dict[str, State] = {}
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.drawn = 0.0
        self.printed = time.monotonic()
        self.eta = _Eta()

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, trials: Sequence[TrialView]) -> None:
        """Draw the table, or print what has changed."""
        left = self.eta.left(trials)
        if self.live:
            if time.monotonic() - self.drawn >= _REFRESH_SECONDS:
                self.drawn = time.monotonic()
                self.live.update(live_table(trials, self.metric, left), refresh=True)
            return
        changed = [trial for trial in trials if self.states.get(trial.name, "waiting") != trial.state]
        for trial in changed:
            self.states[trial.name] = trial.state
            value = f"  {self.metric} {cell(trial.metric)}" if trial.metric is not None else ""
            note = f"  ({trial.note})" if trial.note else ""
            done = sum(state in _OVER for state in self.states.values())
            self._print(f"{_count(done, len(trials))}  {trial.name}  {trial.state}{value}{note}")
        if trials and time.monotonic() - self.printed >= _PLAIN_EVERY_SECONDS:
            running = [trial for trial in trials if trial.state == "running"]
            names = ", ".join(f"{trial.name} {_share(trial):.0%}" for trial in running[:_MOST_NAMED])
            more = f", {len(running) - _MOST_NAMED} more" if len(running) > _MOST_NAMED else ""
            done = sum(trial.state in _OVER for trial in trials)
            self._print(f"{_count(done, len(trials))}  running: {names or 'none'}{more}{_said(left)}")

    def _print(self, line: str) -> None:
        self.printed = time.monotonic()
        self.console.print(escape(line), soft_wrap=True, highlight=False)


class _Eta:
    """Time left of a sweep, by the progress of its trials since the first look."""

    def __init__(self) -> None:
        self.began: tuple[float, float] | None = None

    def left(self, trials: Sequence[TrialView]) -> float | None:
        """Return the seconds left at the pace since the start, or None before any progress."""
        if not trials:
            return None
        now, share = time.monotonic(), sum(map(_share, trials)) / len(trials)
        if self.began is None:
            self.began = now, share
        since, gained = now - self.began[0], share - self.began[1]
        return since * (1 - share) / gained if gained > 0 else None


def _share(trial: TrialView) -> float:
    """Return the part of a trial that is done. A trial that is over needs no more time."""
    return 1.0 if trial.state in _OVER else trial.images / trial.total if trial.total else 0.0


def _count(done: int, total: int) -> str:
    return f"{done}/{total} done, {total - done} left"


def _said(left: float | None) -> str:
    return f"  ETA {clock(left)}" if left is not None else ""


def live_table(trials: Sequence[TrialView], metric: str, left: float | None = None) -> Table:
    """Return the trials as a table of 80 columns: those under way first, then as many others as fit.

    `left` are the seconds to the end, if they are known.
    """
    done = sum(trial.state in _OVER for trial in trials)
    title = f"trials: {_count(done, len(trials))}{_said(left)}"
    table = Table(title=title, title_justify="left", expand=False)
    table.add_column("trial", overflow="ellipsis", no_wrap=True, max_width=30)
    table.add_column("state", no_wrap=True)
    for name in ("images", "loss", metric):
        table.add_column(name, justify="right", no_wrap=True)
    order: list[State] = ["running", "finished", "ended early", "failed", "stopped", "waiting"]
    ranked = sorted(trials, key=lambda trial: order.index(trial.state))
    for trial in ranked[:_MOST_ROWS]:
        done_part = share(trial.images / trial.total) if trial.total else "–"
        values = [cell(value) for value in (trial.loss, trial.metric)]
        table.add_row(escape(trial.name), _MARKS[trial.state], done_part, *values)
    if len(ranked) > _MOST_ROWS:
        table.caption = f"… and {len(ranked) - _MOST_ROWS} more"
    return table

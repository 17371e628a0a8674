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
_MOST_ROWS = 24
_REFRESH_SECONDS = 1.0


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
    """A table that is drawn anew on a terminal. Elsewhere: a line for each trial that begins or ends."""

    def __init__(self, console: Console, metric: str) -> None:
        self.console, self.metric = console, metric
        self.states: dict[str, State] = {}
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.drawn = 0.0

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, trials: Sequence[TrialView]) -> None:
        """Draw the table, or print what has changed."""
        if self.live:
            if time.monotonic() - self.drawn >= _REFRESH_SECONDS:
                self.drawn = time.monotonic()
                self.live.update(live_table(trials, self.metric), refresh=True)
            return
        over = {"finished", "ended early", "failed", "stopped"}
        for trial in trials:
            before = self.states.get(trial.name, "waiting")
            if trial.state != before:
                self.states[trial.name] = trial.state
                done = sum(state in over for state in self.states.values())
                value = f"  {self.metric} {cell(trial.metric)}" if trial.metric is not None else ""
                note = f"  ({trial.note})" if trial.note else ""
                line = f"{done}/{len(trials)} done  {trial.name}  {trial.state}{value}{note}"
                self.console.print(escape(line), soft_wrap=True, highlight=False)


def live_table(trials: Sequence[TrialView], metric: str) -> Table:
    """Return the trials as a table of 80 columns: those under way first, then as many others as fit."""
    done = sum(trial.state not in ("waiting", "running") for trial in trials)
    table = Table(title=f"{done} of {len(trials)} trials done", title_justify="left", expand=False)
    table.add_column("trial", overflow="ellipsis", no_wrap=True, max_width=30)
    table.add_column("state", no_wrap=True)
    for name in ("images", "loss", metric):
        table.add_column(name, justify="right", no_wrap=True)
    order: list[State] = ["running", "finished", "ended early", "failed", "stopped", "waiting"]
    ranked = sorted(trials, key=lambda trial: order.index(trial.state))
    for trial in ranked[:_MOST_ROWS]:
        share = f"{trial.images / trial.total:.0%}" if trial.total else "–"
        values = [cell(value) for value in (trial.loss, trial.metric)]
        table.add_row(escape(trial.name), _MARKS[trial.state], share, *values)
    if len(ranked) > _MOST_ROWS:
        table.caption = f"… and {len(ranked) - _MOST_ROWS} more"
    return table

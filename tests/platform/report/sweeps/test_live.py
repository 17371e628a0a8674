"""What a sweep under way shows: trials that begin and end, their scores, how many are left, and for how long."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.platform.report.screen import Screen

from causalfusion_platform.report.sweeps import live
from causalfusion_platform.report.sweeps.live import LiveTable, TrialView, live_table


def view(name: str, state: live.State, images: int = 0, metric: float | None = None, note: str = "") -> TrialView:
    return TrialView(name, state, images, 1000, 0.5 if images else None, metric, note)


def test_a_log_file_hears_of_every_trial_and_of_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now))
    screen = Screen()
    with LiveTable(screen.console, "fd") as table:
        table.show([view("a", "waiting"), view("b", "waiting")])
        table.show([view("a", "running"), view("b", "waiting")])
        for second in range(1, 61):
            now = float(second)
            table.show([view("a", "running", 10 * second), view("b", "waiting")])
        table.show([view("a", "finished", 1000, 3.25), view("b", "running", 0)])
        table.show([view("a", "finished", 1000, 3.25), view("b", "failed", 300, None, "out of memory")])
    assert screen.lines == [
        "0/2 done, 2 left  a  running",
        "0/2 done, 2 left  running: a 30%  ETA 2:50",
        "0/2 done, 2 left  running: a 60%  ETA 2:20",
        "1/2 done, 1 left  a  finished  fd 3.25",
        "1/2 done, 1 left  b  running",
        "2/2 done, 0 left  b  failed  (out of memory)",
    ]


def test_trials_of_earlier_launches_are_not_counted_in_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now))
    screen = Screen()
    table = LiveTable(screen.console, "fd")
    earlier = [view(name, "finished", 1000, 1.0) for name in "abc"]
    table.show([*earlier, view("d", "running")])
    now = 30.0
    table.show([*earlier, view("d", "running", 500)])
    assert screen.lines[-1] == "3/4 done, 1 left  running: d 50%  ETA 0:30"


def test_many_trials_fit_a_line_and_a_table() -> None:
    screen = Screen()
    trials = [view(f"objective.ar_decay-0.{number}", "running", 10) for number in range(40)]
    screen.console.print(live_table(trials, "class_accuracy", 3725.0))
    assert "trials: 0/40 done, 40 left  ETA 1:02:05" in screen.lines[0]
    assert max(map(len, screen.lines)) <= 80

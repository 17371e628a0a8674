"""A display is never silent for long, on a terminal or in a log file."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from rich.console import Console
from tests.platform.report.screen import Clock, Screen

from causalfusion_platform.report import bar
from causalfusion_platform.report.bar import CountDisplay


def test_a_log_file_hears_of_a_job_that_reports_nothing(clock: Clock) -> None:
    """After three seconds, then every ten: how far it is, and for how long it has been at it."""
    screen = Screen()
    with CountDisplay(screen.console, "verify", "rows", starting="shards/a") as display:
        for second in range(0, 16):
            clock.now = 100.0 + second
            display.look()
        display.show(100, 400)
        for second in range(16, 40):
            clock.now = 100.0 + second
            display.look()
        display.part = "the last shard"
        clock.now = 150.0
        display.look()
    assert screen.lines == [
        "verify: shards/a  0:03 since the start",
        "verify: shards/a  0:13 since the start",
        "verify 100/400 rows  0:23 since the start",
        "verify 100/400 rows  0:33 since the start",
        "verify 100/400 rows  the last shard  0:50 since the start",
    ]


def test_a_job_of_a_moment_prints_nothing(clock: Clock) -> None:
    screen = Screen()
    with CountDisplay(screen.console, "verify", "rows") as display:
        display.show(100, 100)
    assert screen.text == ""


def test_the_line_comes_by_itself(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a thread, while the job is busy elsewhere."""
    monkeypatch.setattr(bar, "_LOOK_SECONDS", 0.01)
    screen = Screen()
    printed = threading.Event()

    class Heard(Console):
        def print(self, *objects: object, **options: object) -> None:
            super().print(*objects)
            printed.set()

    console = Heard(file=screen.file, width=80)
    with CountDisplay(console, "import", starting="model.pt → weights"):
        clock.now = 104.0
        assert printed.wait(60)  # only a hang reaches this limit
    assert screen.text == "import: model.pt → weights  0:04 since the start\n"


def test_a_terminal_shows_speed_and_time_left_and_is_clean_afterwards(clock: Clock) -> None:
    screen = Screen(force_terminal=True, color_system=None)
    with CountDisplay(screen.console, "generate originals", "steps", starting="weights, autoencoder") as display:
        display.bar.refresh()
        clock.now = 110.0
        display.show(250, 1000)
        display.bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", screen.text.replace("\r", "\n"))
    lines = [line.rstrip() for line in shown.splitlines()]
    assert any(line.startswith("generate originals") and "weights, autoencoder" in line for line in lines)
    assert any("25% 25 steps/s  ETA 0:30" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert screen.text.rstrip().endswith("\x1b[2K")  # the bar's line is erased


def test_what_is_printed_to_a_file_stays_out_of_a_terminal(tmp_path: Path) -> None:
    """`causalfusion … > file` with the bar on stderr."""
    assert bar.CountDisplay(Console(stderr=True), "x").bar.live._redirect_stdout is False
    assert bar.CountDisplay(Console(), "x").bar.live._redirect_stdout is True

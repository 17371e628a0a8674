"""What a person sees of generating: on a terminal, in a log file, and at its end."""

from __future__ import annotations

import logging
from pathlib import Path

from tests.platform.report.screen import Clock, Screen
from tests.platform.sampling.plans import make_plan

from causalfusion_platform.report.generating import GeneratingDisplay, generated_panel
from causalfusion_platform.report.log import PLATFORM, log_to
from causalfusion_platform.sampling.progress import Generating


def test_log_file_has_a_line_soon_then_every_ten_seconds_and_the_last(clock: Clock) -> None:
    screen = Screen()
    console = screen.console
    with log_to(console), GeneratingDisplay(console) as display:
        logging.getLogger(PLATFORM).info("256 of 50000 samples are there; 49744 to do")
        for second in range(1, 25):
            clock.now = 100.0 + second
            display.show(Generating(1000 * second, 50_000, 1000.0))
        display.show(Generating(50_000, 50_000, 1234.5))
    assert screen.text.splitlines() == [
        "256 of 50000 samples are there; 49744 to do",
        "generate 3000/50000 samples  1000 samples/s  ETA 0:47",
        "generate 13000/50000 samples  1000 samples/s  ETA 0:37",
        "generate 23000/50000 samples  1000 samples/s  ETA 0:27",
        "generate 50000/50000 samples  1234 samples/s  ETA 0:00",
    ]


def test_a_bar_on_a_terminal_fits_its_line() -> None:
    screen = Screen(force_terminal=True, color_system=None, legacy_windows=False)
    console = screen.console
    with log_to(console), GeneratingDisplay(console) as display:
        display.show(Generating(12_345, 50_000, 0.0123))
        display.bar.refresh()
        rendered = console.render_lines(display.bar.get_renderable())
        lines = ["".join(segment.text for segment in line) for line in rendered]
    assert len(lines) == 1
    assert "generate" in lines[0]
    assert "25%" in lines[0]
    assert "0.0123 samples/s  ETA " in lines[0]
    assert "generate 12345" not in screen.text


def test_the_panel_says_what_there_is(tmp_path: Path) -> None:
    screen = Screen()
    console = screen.console
    (tmp_path / "samples.npz").write_bytes(bytes(4096))
    plan = make_plan(classes=(3,), labels="random", uint8="truncate", precision="bf16")
    console.print(generated_panel(plan, "ab" * 32, [tmp_path / "samples.npz"], 6, 3.0))
    text = screen.text
    for part in (
        "10 (4 were there), 8×8 pixels",
        "S = 2 AR step(s) of 16 tokens, 3 ddpm steps each, guidance 1.5",
        "random, 1 class, seed 11",
        "truncate, bf16, autoencoder identity",
        "3.0 s, 2 samples/s",
        "4 KiB",
        "abababababababab",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) == 80

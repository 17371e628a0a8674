"""What a person sees in 80 columns, and in a log file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.platform.config.trees import load_experiment
from tests.platform.report.screen import Clock, Screen

from causalfusion_platform.report.terminal import TrainingDisplay, as_path, closing_panel, preflight_line
from causalfusion_platform.tasks import open_task
from causalfusion_platform.train.progress import Progress

SUMMARY: dict[str, Any] = {
    "name": "quickstart",
    "class_accuracy": 0.8765,
    "judge_accuracy": 0.9832,
    "num_samples": 200,
    "fd_digits_cnn": 12.345,
    "fd_digits_cnn_real": 1.239,
    "stage_seconds": {"prepare": 1.2, "start Ray": 4.6, "train": 61.4, "sample": 3.0, "score": 5.0},
    "total_seconds": 83.4,
    "images_seen": 38400,
    "images_per_second": 625.4,
    "grid_path": "/far/away/runs/quickstart/samples/final.png",
    "run_dir": "/far/away/runs/quickstart",
    "mlflow_run_id": "0123456789abcdef0123456789abcdef",
}


def shown(summary: dict[str, Any], dashboard: str = "causalfusion ui") -> dict[str, str]:
    """Return what the panel shows: label → value, with the line breaks of a fold taken out again."""
    screen = Screen()
    scores = open_task(load_experiment("smoke")).show_scores(summary)
    screen.console.print(closing_panel(summary, dashboard, scores))
    lines = screen.text.splitlines()
    assert {len(line) for line in lines} == {80}
    rows: dict[str, str] = {}
    label = ""
    for line in lines[1:-1]:
        assert line[0] == line[-1] == "│"
        # Labels are padded to the longest one, "class accuracy" or shorter.
        found = re.match(r"│ (\S+(?: \S+)*) {2,}(\S.*?) *│$", line)
        if found and line[2] != " ":
            label = found[1]
            rows[label] = found[2]
        else:
            rows[label] += " " + line[1:-1].strip()
    return rows


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_the_panel_shows_every_value() -> None:
    rows = shown(SUMMARY)
    assert {key: squeezed(value) for key, value in rows.items()} == {
        key: squeezed(value)
        for key, value in {
            "class accuracy": "0.876 of 200 samples; the classifier itself has 0.983 on real images "
            "it has not seen",
            "fd_digits_cnn": "12.35 (as many real images: 1.24)",
            "time": "83 s: prepare 1 s · start Ray 5 s · train 61 s · sample 3 s · score 5 s",
            "training": "38400 images, 625 images/s",
            "sample grid": "/far/away/runs/quickstart/samples/final.png",
            "run folder": "/far/away/runs/quickstart",
            "MLflow run": "0123456789abcdef0123456789abcdef",
            "dashboard": "causalfusion ui",
        }.items()
    }


def test_the_panel_names_the_run() -> None:
    screen = Screen()
    screen.console.print(closing_panel(SUMMARY, "causalfusion ui"))
    assert screen.text.splitlines()[0].startswith("╭─ run quickstart ─")


def test_nothing_long_is_cut() -> None:
    folder = "/a/" + "very-long-name/" * 12 + "runs"
    changed = SUMMARY | {"run_dir": folder, "grid_path": f"{folder}/final.png"}
    rows = shown(changed, f"causalfusion ui --runs {folder}")
    assert squeezed(rows["run folder"]) == folder
    assert squeezed(rows["sample grid"]) == f"{folder}/final.png"
    assert squeezed(rows["dashboard"]) == f"causalfusionui--runs{folder}"


def test_paths_with_brackets_are_shown_as_they_are() -> None:
    rows = shown(SUMMARY | {"run_dir": "/data/[lab]/runs", "grid_path": "/data/[/lab]/final.png"})
    assert rows["run folder"] == "/data/[lab]/runs"
    assert rows["sample grid"] == "/data/[/lab]/final.png"


def test_what_was_not_measured_is_not_shown() -> None:
    nothing = dict.fromkeys(("class_accuracy", "judge_accuracy", "fd_digits_cnn", "fd_digits_cnn_real"))
    rows = shown(SUMMARY | nothing)
    assert set(rows) == {"time", "training", "sample grid", "run folder", "MLflow run", "dashboard"}


def test_paths_below_here_are_short(own_folder: Path) -> None:
    assert as_path(own_folder / "runs/x") == "runs/x"
    assert as_path(own_folder.parent / "x") == str(own_folder.parent / "x")


def test_the_preflight_line() -> None:
    import torch

    line = preflight_line()
    assert re.match(r"\d+ cores · \d+ GiB · ", line)
    assert f"torch {torch.__version__}" in line
    assert "\n" not in line


# Progress


def progress(images: int, rate: float = 100.0) -> Progress:
    return Progress(images=images, total=10_000, loss=0.98765, images_per_second=rate)


def test_a_log_gets_a_line_every_ten_seconds_and_the_last(clock: Clock) -> None:
    screen = Screen(force_terminal=False)
    with TrainingDisplay(screen.console) as display:
        for now, images in ((0, 100), (3, 200), (9.9, 300), (10, 400), (19, 500), (25, 600), (26, 10_000)):
            clock.now = 1000 + now
            display.show(progress(images))
            display.show(progress(images))
    lines = [line for line in screen.text.splitlines() if line.startswith("train ")]
    assert [line.split()[1] for line in lines] == ["100/10000", "400/10000", "600/10000", "10000/10000"]
    assert lines[0] == "train 100/10000 images  100 images/s  loss 0.9877  ETA 1:39"
    assert screen.text.splitlines()[0] == "starting workers, engine and data"
    assert "\x1b" not in screen.text


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("images", "rate", "left"),
    [
        (10_000, 100.0, "0:00"),
        (9_900, 100.0, "0:01"),
        (4_000, 100.0, "1:00"),
        (0, 1.0, "2:46:40"),
        (0, 10_000 / 3599, "59:59"),
        (0, 10_000 / 3600.5, "1:00:00"),
        (0, 0.0, "99:59:59"),
    ],
)
def test_the_time_left(images: int, rate: float, left: str) -> None:
    screen = Screen(force_terminal=False)
    with TrainingDisplay(screen.console) as display:
        display.show(progress(images, rate))
    assert screen.text.splitlines()[-1].endswith(f" ETA {left}")


@pytest.mark.usefixtures("clock")
def test_a_terminal_gets_a_bar_that_fits() -> None:
    screen = Screen(force_terminal=True)
    with TrainingDisplay(screen.console) as display:
        display.show(progress(2_500, 123_456.0))
        display.show(progress(5_000, 0.5))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.text)
    last = next(line for line in reversed(text.splitlines()) if "train" in line)
    assert "50%" in last
    assert "0 images/s  loss 0.9877  ETA 2:46:40" in last
    assert len(last.rstrip()) <= 80
    assert "starting" not in text

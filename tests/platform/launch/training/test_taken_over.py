"""A launch that another one takes over, as where a lock is lost: it ends, and writes nothing more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.platform.tasks.test_task import BATCH, STEPS, composed, weights_of

from causalfusion_platform.cli.ending import ending_of
from causalfusion_platform.config.errors import STOPPED
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.launch.runs.exit_status import TakenOver
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.training.train import run_training


def files_of(run: Path) -> dict[str, bytes]:
    """Return what a launch publishes: the run's own files, and its checkpoints."""
    files = [path for path in run.iterdir() if path.is_file() and path.name != ".lock"]
    files += [path for path in (run / "checkpoints").rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def at_report(number: int, act: Callable[[], None]) -> Callable[[Any], None]:
    """Return a display of progress that acts at one of the reports, of which each step has one."""
    reports = iter(range(1, STEPS + 1))

    def show(_: object) -> None:
        if next(reports) == number:
            act()

    return show


def test_the_older_ends_and_the_newer_goes_on_bit_for_bit(own_folder: Path) -> None:
    write_digits(own_folder / "data")
    data = f"data.path={own_folder / 'data'}"
    run_training(composed("undisturbed", data), local=True)
    for number in (3, STEPS):  # between two checkpoints, and right before the last one
        experiment = composed(f"taken-at-{number}", data)
        run = experiment.experiment.run_dir
        left: dict[str, bytes] = {}

        def take_over(run: Path = run, left: dict[str, bytes] = left) -> None:
            RunFolder(run)._begin()
            left.update(files_of(run))

        with pytest.raises(TakenOver) as caught:
            run_training(experiment, local=True, show=at_report(number, take_over))
        message = str(caught.value)
        assert f"this launch of run 'taken-at-{number}' ends: launch 2 has taken run" in message
        assert f"causalfusion runs show taken-at-{number}" in message
        assert ending_of(caught.value).status == STOPPED
        assert left
        assert files_of(run) == left

        summary = run_training(experiment, local=True).summary
        assert (summary["launches"], summary["images_seen"]) == (3, STEPS * BATCH)
        torch.testing.assert_close(weights_of(run), weights_of(run.parent / "undisturbed"), rtol=0, atol=0)

"""A run that is killed between any two lines of Python that report its steps and deliver the reports.

A process that is killed leaves the files as they are. So they are copied whenever a line has changed them, and each
copy is a run to relaunch. MLflow is one of these files: it keeps one of two points with the same metric, time, step
and value, as `test_delivery` shows of MLflow itself.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.platform.train.trained import BATCH, CPU, alone, tiny

from causalfusion_platform.tracking import mlflow_calls
from causalfusion_platform.tracking.delivery import Delivery
from causalfusion_platform.tracking.journal import AttemptStarted, Journal, recorded_images
from causalfusion_platform.train.device import Peak
from causalfusion_platform.train.loop import OptimizerStep, StepResult
from causalfusion_platform.train.metrics import MetricsHook, Recording, Spent
from causalfusion_platform.train.objective import StepCost
from causalfusion_platform.train.system import System


class Points:
    """Stands for MLflow's client: a file with a line a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log_batch(self, _: str, metrics: list[Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([[one.key, one.timestamp, one.step, one.value] for one in metrics]) + "\n")


class Copies:
    """Copies a folder before each line of Python that finds it changed."""

    def __init__(self, folder: Path, into: Path) -> None:
        self.folder, self.into, self.lines = folder, into, 0
        self.state: object = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines += 1
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        state = [(path, path.read_bytes()) for path in files]
        if state != self.state:
            self.state = state
            shutil.copytree(self.folder, self.into / f"{self.lines:06d}")
        return self


def loss_of(number: int) -> float:
    return torch.tensor(1.0 / number).item()


def result(number: int) -> StepResult:
    step = OptimizerStep(
        loss=torch.tensor(1.0 / number),
        values={"mse": torch.tensor(0.5)},
        grad_norm=torch.tensor(1.0),
        learning_rate=0.1,
        numbers={"ar_steps": 1},
        cost=lambda: StepCost(1000.0, 16),
    )
    return StepResult(step, images=BATCH, seconds=0.5, data_seconds=0.25)


def launch(run_dir: Path, steps: Sequence[int], copies: Copies | None = None) -> None:
    """Train the steps, from the first on, and deliver after each."""
    journal = Journal(run_dir)
    journal.add(AttemptStarted(launch=1, attempt=1, workers=1, zero_stage=0, images=0))
    recording = Recording(journal, lambda _: None, 1, recorded_images(journal.events()), System(run_dir, CPU))
    hook = MetricsHook(BATCH, recording, Spent(), Peak(1.0, "a test"))
    experiment = tiny(run_dir)
    delivery = Delivery(run_dir, str(run_dir), run_id="run", on_run_id=lambda _: None)
    before = sys.gettrace()
    for number in steps:
        hook.observe(result(number))
        state = SimpleNamespace(images_seen=BATCH * number, step=number)
        loop: Any = SimpleNamespace(experiment=experiment, state=state, device=CPU)
        if copies:
            sys.settrace(copies)
        try:
            hook.run(loop)
            delivery._deliver_waiting()
        finally:
            sys.settrace(before)


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """Return the loss's points as MLflow keeps them."""
    lines = (run_dir / "points").read_text().splitlines()
    points = {tuple(point) for line in lines for point in json.loads(line)}
    return sorted((step, value) for key, _, step, value in points if key == "train/loss")


def test_every_point_is_there_once_wherever_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone()
    monkeypatch.setattr(mlflow_calls, "client", lambda uri: Points(Path(uri) / "points"))
    warm, run_dir, killed = tmp_path / "warm", tmp_path / "run", tmp_path / "killed"
    for folder in (warm, run_dir, killed):
        folder.mkdir()
    launch(warm, [1])  # imports, which would be traced too
    copies = Copies(run_dir, killed)
    launch(run_dir, [1, 2], copies)
    states = sorted(killed.iterdir())
    # Of each step: reported, in MLflow, the cursor beside its place, the cursor in its place.
    assert len(states) >= 1 + 2 * 4
    assert copies.lines > 1000
    held = set()
    for state in states:
        held.add((recorded_images(Journal(state).events()), (state / "points").exists() and len(losses(state))))
        launch(state, [1, 2, 3])
        assert losses(state) == [(BATCH * number, loss_of(number)) for number in (1, 2, 3)], state
    # Not reported at all, reported but not in MLflow, and in MLflow.
    assert {(0, False), (BATCH, False), (BATCH, 1), (2 * BATCH, 1), (2 * BATCH, 2)} <= held

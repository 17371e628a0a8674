"""What tests of training share: a folder for their runs, and a run in one process that nothing disturbed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.launch.training.train import Outcome, run_training

SMOKE = ["train.checkpoint_every_images=256", "train.log_every_images=128", "train.precision=fp32"]
"""16 steps of 64 images: three epochs are begun, so batches straddle their borders.

In fp32: the first step of sampling divides by √ᾱ, which is small, and rounding to bf16 shows a hundredfold."""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the runs of all these tests. Its name has what shells, globs and URLs take apart."""
    folder = tmp_path_factory.mktemp("home") / "müller's [runs], a=b #1 50% ~c"
    folder.mkdir()
    return folder


@pytest.fixture
def home(home: Path, empty_mlflow_store: Path) -> Path:
    """A home with the tables of MLflow's store; runs at `place` have MLflow make them."""
    (home / "runs").mkdir()
    shutil.copy(empty_mlflow_store, home / "runs" / "mlflow.db")
    return home


@pytest.fixture
def at_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, for runs that the test itself starts."""
    monkeypatch.setenv("CAUSALFUSION_HOME", str(place))
    return place


def train(place: Path, *overrides: str, local: bool = False) -> Outcome:
    """Train the smoke experiment at a place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALFUSION_HOME", str(place))
        return run_training(compose_experiment("smoke", [*SMOKE, *overrides]), local=local)


@pytest.fixture(scope="session")
def in_process(place: Path) -> Outcome:
    """The smoke experiment with one worker, without Ray."""
    return train(place, "name=in-process", local=True)

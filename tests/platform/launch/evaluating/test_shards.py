"""Which shards a trained model is compared with, and what is said if they are others than those of training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.platform.checkpoint.made import put_weights

from causalfusion_platform.checkpoint import manifest as checkpoints
from causalfusion_platform.checkpoint.find import find_weights
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.launch.evaluating.shards import shards_of
from causalfusion_platform.launch.runs.state import RunState


@pytest.fixture
def run(make_experiment: Callable[..., Experiment], own_folder: Path, digits_folder: Path) -> Path:
    """A run on a copy of the digits, with one checkpoint of a tiny model."""
    shards = own_folder / "shards"
    shutil.copytree(digits_folder, shards)
    experiment = make_experiment(data={"path": shards})
    folder = put_weights(experiment.run_dir, 64, seed=0).parent
    facts = checkpoints.read(folder)
    digest = Manifest.read(shards).digest
    checkpoints.write_manifest(folder, _with(facts, digest), facts.files)
    RunState(tracking_uri="", config=experiment.model_dump(mode="json")).write(experiment.run_dir)
    return experiment.run_dir


def _with(found: checkpoints.CheckpointManifest, digest: str) -> checkpoints.Facts:
    fields = {name: getattr(found, name) for name in checkpoints.Facts.model_fields}
    return checkpoints.Facts(**{**fields, "data_digest": digest})


def test_the_data_of_training(run: Path, own_folder: Path, log_lines: list[str]) -> None:
    assert shards_of(find_weights(run)) == own_folder / "shards"
    assert log_lines == []


def test_other_data_are_said(run: Path, own_folder: Path, log_lines: list[str]) -> None:
    found = Manifest.read(own_folder / "shards")
    found.without([found.shards[0].file]).write(own_folder / "shards")
    shards_of(find_weights(run))
    (line,) = log_lines
    assert "shards holds other data than those that run 'test' was trained on: digest " in line
    assert f"was {found.digest[:12]}…" in line


def test_data_that_do_not_fit_the_model_are_refused(run: Path, own_folder: Path) -> None:
    found = Manifest.read(own_folder / "shards")
    found.model_copy(update={"class_names": found.class_names[:9]}).write(own_folder / "shards")
    with pytest.raises(UserError, match=r"have 9 classes, but model\.num_classes is 10"):
        shards_of(find_weights(run))


def test_without_a_run_or_its_data_there_are_none(run: Path, own_folder: Path) -> None:
    shutil.copytree(find_weights(run).folder, own_folder / "alone")
    assert shards_of(find_weights(own_folder / "alone")) is None
    shutil.rmtree(own_folder / "shards")
    assert shards_of(find_weights(run)) is None

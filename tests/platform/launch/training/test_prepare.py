"""Data that is written before a run starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.launch.training.train import check_inputs


@pytest.mark.parametrize(
    ("prepare", "rows"),
    [(True, {"digits": 1797})]
    + [(parts, {"digits": 1497, "digits-validation": 300}) for parts in ("split", "captions")]
    + [("mnist", {"digits": 4500, "digits-validation": 500})],
)
def test_the_digits_are_written(
    make_experiment: Callable[..., Experiment], own_folder: Path, prepare: bool | str, rows: dict[str, int]
) -> None:
    folder = own_folder / "digits"
    model = {"preset": "tiny", "input_size": 16 if prepare == "mnist" else 8}
    experiment = make_experiment(data={"path": folder, "prepare": prepare}, model=model)
    shards = check_inputs(experiment)
    assert {path.name: Manifest.read(path).rows for path in own_folder.glob("digits*")} == rows
    assert shards.folder == folder
    assert shards.manifest.captions == (prepare == "captions")
    assert check_inputs(experiment).manifest == shards.manifest

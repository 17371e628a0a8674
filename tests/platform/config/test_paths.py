"""Paths of a configuration, on disk and on object storage, through the JSON that workers read."""

from __future__ import annotations

import pytest
from tests.platform.config.trees import load_experiment

from causalfusion_platform.config.schema import Experiment


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.path=s3://bucket/shards", "data.validation=s3://bucket/validation"],
        ["data.path=/shards/digits", "data.validation=relative", "train.staging=/scratch"],
        ["runs=s3://bucket/runs"],
    ],
)
def test_an_experiment_comes_back_from_json(overrides: list[str]) -> None:
    experiment = load_experiment("quickstart", overrides)
    again = Experiment.model_validate_json(experiment.model_dump_json())
    assert again == experiment
    assert type(again.data.path) is type(experiment.data.path)
    assert str(again.runs) == str(experiment.runs)

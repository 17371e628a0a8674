"""A Ray Tune sweep on two cores: nested Ray Train runs that neither deadlock nor lose a trial."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.launch.sweep import run_sweep


@pytest.mark.ray
@pytest.mark.slow
def test_trials_are_children_of_one_run_and_a_second_call_trains_nothing(home: Path, ray_cluster: None) -> None:
    overrides = [
        "name=decay",
        "train.images=256",
        "train.sample_every_images=256",
        "train.checkpoint_every_images=256",
        "sweep.grid={objective.ar_decay: [1.0, 0.5]}",
    ]
    composed = compose_experiment("smoke", overrides)
    # A real console, which cannot be pickled: Tune pickles the callbacks that it is given.
    console = Console(record=True, file=io.StringIO())
    result = run_sweep(composed, console.print)
    assert result.failed == 0
    assert result.columns[:2] == ["objective.ar_decay", "class_accuracy"]
    assert sorted(row[0] for row in result.rows) == [0.5, 1.0]
    lines = console.export_text().splitlines()
    assert sum(line.startswith("trial ") for line in lines) == 2
    assert "objective.ar_decay" in (home / "runs" / "decay" / "results.md").read_text()

    client = MlflowClient(composed.experiment.tracking_uri)
    parent = client.get_run(result.mlflow_run_id)
    assert parent.info.status == "FINISHED"
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'"
    )
    assert sorted(run.info.run_name for run in children) == ["ar_decay-0.5", "ar_decay-1.0"]
    assert {run.data.params["objective.ar_decay"] for run in children} == {"0.5", "1.0"}
    assert all(run.info.status == "FINISHED" for run in children)

    again = run_sweep(composed, console.print)
    assert again.rows == result.rows  # speeds and seconds too: the very summaries
    assert len(client.search_runs([parent.info.experiment_id])) == 3

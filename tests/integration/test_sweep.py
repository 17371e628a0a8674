"""A Ray Tune sweep on two cores: nested Ray Train runs that neither deadlock nor lose a trial."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console
from tests.conftest import ROOT, run_environment

from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.sweeping.job import job_of
from causalfusion_platform.launch.sweeping.sweep import run_sweep
from causalfusion_platform.report.sweeps.live import LiveTable
from causalfusion_platform.tracking.journal import Journal, Measured, TrainingStarted


@pytest.mark.ray
@pytest.mark.slow
def test_trials_are_children_of_one_run_and_the_worse_one_ends_early(home: Path, ray_cluster: None) -> None:
    overrides = [
        "name=halving",
        "train.images=2560",
        # The second one learns nothing: its weights hardly move from where they start.
        "sweep.grid={optim.base_lr: [1.0e-2, 1.0e-9]}",
        "sweep.metric=fd_digits_cnn",
        "sweep.mode=min",
        "sweep.asha={grace_images: 1280, reduction_factor: 2}",
        "sweep.max_concurrent=1",
    ]
    composed = compose_experiment("smoke", overrides)
    # A real console, which cannot be pickled: Tune pickles the callbacks that it is given.
    console = Console(record=True, file=io.StringIO(), width=200)
    job = job_of(composed)
    result = run_sweep(job, LiveTable(console, "fd_digits_cnn"))
    assert result.failed == 0
    said = console.export_text()
    best, worse = result.ends
    assert (best.name, best.ended_early_at) == ("base_lr-0.01", None)
    assert (worse.name, worse.ended_early_at) == ("base_lr-1e-09", 1280), said
    assert [line.split()[:4] for line in said.splitlines() if "done" in line and "running" not in line] == [
        ["1/2", "done", "base_lr-0.01", "finished"],
        ["2/2", "done", "base_lr-1e-09", "ended"],
    ]
    assert result.columns[:2] == ["optim.base_lr", "fd_digits_cnn"]
    assert [row[0] for row in result.rows] == [0.01, 1e-9]
    table = (home / "runs" / "halving" / "results.md").read_text()
    assert "optim.base_lr" in table
    assert "at 1,280 images" in table
    measured = [event for event in Journal(job.run_dir(best.name)).events() if isinstance(event, Measured)]
    assert [event.images for event in measured] == [1280, 2560]
    state = RunFolder(job.run_dir(worse.name)).state
    assert state is not None and not state.finished

    client = MlflowClient(composed.experiment.tracking_uri)
    parent = client.get_run(result.mlflow_run_id)
    assert parent.info.status == "FINISHED"
    score = result.rows[0][1]
    assert parent.data.metrics == {"sweep/measured": 2, "sweep/failed": 0, "sweep/best_fd_digits_cnn": score}
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'"
    )
    assert {run.info.run_name: run.info.status for run in children} == {
        "base_lr-0.01": "FINISHED",
        "base_lr-1e-09": "KILLED",
    }
    assert {run.data.params["optim.base_lr"] for run in children} == {"0.01", "1e-09"}


@pytest.mark.ray
@pytest.mark.slow
def test_one_at_a_time_and_a_stopped_one_goes_on(home: Path, ray_cluster: None) -> None:
    """Ctrl-C ends a sweep in the middle of a trial; the same command continues the trial from its checkpoint."""
    overrides = [
        "name=stopped",
        "train.sample_every_images=1024",
        "train.checkpoint_every_images=256",
        "sweep.grid={objective.ar_decay: [0.5]}",
    ]
    composed, folder = compose_experiment("smoke", overrides), home / "runs" / "stopped"
    display = LiveTable(Console(file=io.StringIO()), "class_accuracy")
    trial, log = folder / "ar_decay-0.5", home / "sweep.log"
    # A step after the first checkpoint takes long: the sweep hears of its end in the middle of the trial.
    faults = home / "faults.json"
    when = str(checkpoint_folder(trial / "checkpoints", 256))
    faults.write_text(json.dumps([{"id": "long", "do": "SIGCONT", "step": 7, "when": when, "pause": 300}]))
    slow = {"CAUSALFUSION_TEST_FAULTS": str(faults), "PYTHONPATH": str(ROOT / "tests" / "faults" / "injected")}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "causalfusion_platform", "sweep", "smoke", *overrides],
            cwd=ROOT,
            env=run_environment(CAUSALFUSION_HOME=str(home), **slow),
            stdout=file,
            stderr=file,
        )
        try:
            deadline = time.monotonic() + 200
            while not list(trial.glob("checkpoints/images-*")) and time.monotonic() < deadline:
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            with pytest.raises(UserError, match=rf"'stopped' is under way: process {process.pid} "):
                run_sweep(job_of(composed), display)
            process.send_signal(signal.SIGINT)  # Ctrl-C; for SIGTERM the same handler answers
            assert process.wait(timeout=120) == 75, log.read_text()
        finally:
            process.kill()
    assert "stopped before its end" in (folder / "results.md").read_text()
    assert "the same command runs them again" in log.read_text()
    assert "raylet" not in log.read_text()  # Ray's warnings about the many processes of a trial
    state = RunFolder(folder).state
    assert state is not None and state.mlflow_run_id is not None and not state.finished
    client = MlflowClient(composed.experiment.tracking_uri)
    assert client.get_run(state.mlflow_run_id).info.status == "KILLED"

    result = run_sweep(job_of(composed), display)
    assert (result.failed, result.stopped, result.mlflow_run_id) == (0, False, state.mlflow_run_id)
    starts = [event.images for event in Journal(trial).events() if isinstance(event, TrainingStarted)]
    assert len(starts) == 2
    assert starts == [0, 256]
    runs = client.search_runs([client.get_run(state.mlflow_run_id).info.experiment_id])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        ("ar_decay-0.5", "FINISHED"),
        ("stopped", "FINISHED"),
    ]

    # Once more, it trains nothing.
    again = run_sweep(job_of(composed), display)
    assert again.rows == result.rows  # speeds and seconds too: the very summaries
    assert len(client.search_runs([client.get_run(state.mlflow_run_id).info.experiment_id])) == 2

"""A Ray Tune sweep on two cores: nested Ray Train runs that neither deadlock nor lose a trial."""

from __future__ import annotations

import io
import json
import os
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
from causalfusion_platform.launch.sweeping.job import SweepJob, job_of
from causalfusion_platform.launch.sweeping.sweep import run_sweep
from causalfusion_platform.report.sweeps.live import LiveTable
from causalfusion_platform.tracking.journal import Journal, Measured, TrainingStarted

INJECTED = ROOT / "tests" / "faults" / "injected"
OVERRIDES = [
    "name=halving",
    "train.images=2560",
    "train.checkpoint_every_images=256",
    # The second one learns nothing: its weights hardly move from where they start.
    "sweep.grid={optim.base_lr: [1.0e-2, 1.0e-9]}",
    "sweep.metric=fd_digits_cnn",
    "sweep.mode=min",
    "sweep.asha={grace_images: 1280, reduction_factor: 2}",
    "sweep.max_concurrent=1",
    # A secret, of which nothing is to be left.
    "description=with ${oc.env:PLANTED}",
    "tracking.tags.token=${oc.env:PLANTED}",
    "train.deepspeed.tensorboard={enabled: false, job_name: '${oc.env:PLANTED}'}",
]
SECRET = "hunter2-planted"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver has it in its environment. Ray's processes, which have started before, have not."""
    monkeypatch.setenv("PLANTED", SECRET)


def stop_in_a_trial(home: Path, job: SweepJob, trial: Path) -> None:
    """Run the command, and send it Ctrl-C in the middle of a trial."""
    log = home / "sweep.log"
    # A step after the first checkpoint takes long: the sweep hears of its end in the middle of the trial.
    faults = home / "faults.json"
    when = str(checkpoint_folder(trial / "checkpoints", 256))
    faults.write_text(json.dumps([{"id": "long", "do": "SIGCONT", "step": 7, "when": when, "pause": 500}]))
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "causalfusion_platform", "sweep", "smoke", *OVERRIDES],
            cwd=ROOT,
            env=run_environment(
                CAUSALFUSION_HOME=str(home),
                CAUSALFUSION_TEST_FAULTS=str(faults),
                PYTHONPATH=os.pathsep.join([str(INJECTED), os.environ.get("PYTHONPATH", "")]),
            ),
            stdout=file,
            stderr=file,
        )
        try:
            while not list(trial.glob("checkpoints/images-*")):  # the test's own limit ends a hang
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            with pytest.raises(UserError, match=rf"'halving' is under way: process {process.pid} "):
                run_sweep(
                    job_of(compose_experiment("smoke", OVERRIDES)), LiveTable(Console(file=io.StringIO()), "")
                )
            process.send_signal(signal.SIGINT)  # Ctrl-C; for SIGTERM the same handler answers
            assert process.wait(timeout=280) == 75, log.read_text()
        finally:
            process.kill()
    assert "the same command runs them again" in log.read_text()
    assert "raylet" not in log.read_text()  # Ray's warnings about the many processes of a trial


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stopped_sweep_goes_on_and_its_worse_trial_ends_early(home: Path, ray_cluster: None) -> None:
    """Ctrl-C ends it in the middle of a trial; the same command continues that trial from its checkpoint."""
    composed, folder = compose_experiment("smoke", OVERRIDES), home / "runs" / "halving"
    job = job_of(composed)
    stop_in_a_trial(home, job, job.run_dir("base_lr-0.01"))
    assert "stopped before its end" in (folder / "results.md").read_text()
    state = RunFolder(folder).state
    assert state is not None and state.mlflow_run_id is not None and not state.finished
    client = MlflowClient(composed.experiment.tracking_uri)
    assert client.get_run(state.mlflow_run_id).info.status == "KILLED"

    # A real console, which cannot be pickled: Tune pickles the callbacks that it is given.
    console = Console(record=True, file=io.StringIO(), width=200)
    result = run_sweep(job, LiveTable(console, "fd_digits_cnn"))
    assert (result.failed, result.stopped, result.mlflow_run_id) == (0, False, state.mlflow_run_id)
    said = console.export_text()
    best, worse = result.ends
    assert (best.name, best.ended_early_at) == ("base_lr-0.01", None)
    assert (worse.name, worse.ended_early_at) == ("base_lr-1e-09", 1280), said
    assert [line.split()[:6] for line in said.splitlines() if "done" in line and "running" not in line] == [
        ["1/2", "done,", "1", "left", "base_lr-0.01", "finished"],
        ["2/2", "done,", "0", "left", "base_lr-1e-09", "ended"],
    ]
    assert result.columns[:2] == ["optim.base_lr", "fd_digits_cnn"]
    assert [row[0] for row in result.rows] == [0.01, 1e-9]
    table = (folder / "results.md").read_text()
    assert "optim.base_lr" in table
    assert "at 1,280 images" in table
    events = Journal(job.run_dir(best.name)).events()
    assert [event.images for event in events if isinstance(event, TrainingStarted)] == [0, 256]
    assert [event.images for event in events if isinstance(event, Measured)] == [1280, 2560]
    trial = RunFolder(job.run_dir(worse.name)).state
    assert trial is not None and not trial.finished

    parent = client.get_run(result.mlflow_run_id)
    assert parent.info.status == "FINISHED"
    score = result.rows[0][1]
    assert parent.data.metrics == {"sweep/measured": 2, "sweep/failed": 0, "sweep/best_fd_digits_cnn": score}
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'"
    )
    assert {run.info.run_name: run.info.status for run in children} == {
        f"{composed.experiment.name}/base_lr-0.01": "FINISHED",
        f"{composed.experiment.name}/base_lr-1e-09": "KILLED",
    }
    assert {run.data.params["optim.base_lr"] for run in children} == {"0.01", "1e-09"}
    assert len(client.search_runs([parent.info.experiment_id])) == 3
    assert {run.data.tags["token"] for run in (parent, *children)} == {"${oc.env:PLANTED}"}
    leaks = [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert leaks == []
    assert SECRET not in said

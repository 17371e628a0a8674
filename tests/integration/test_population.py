"""Population-based training that really exploits: the worst member goes on from the best one's weights."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from causalfusion_platform.checkpoint.manifest import read
from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.sweeping.job import job_of
from causalfusion_platform.launch.sweeping.population import members_of
from causalfusion_platform.launch.sweeping.sweep import run_sweep
from causalfusion_platform.report.sweeps.live import LiveTable
from causalfusion_platform.tracking.journal import Adopted, Journal, Launched, TrainingStarted

EVERY, IMAGES = 1280, 5120


@pytest.mark.ray
@pytest.mark.slow
def test_the_worst_member_takes_the_weights_of_the_best(home: Path, ray_cluster: None) -> None:
    overrides = [
        "name=population",
        f"train.images={IMAGES}",
        "evaluation.num_samples=20",
        "sweep.space={optim.base_lr: {log_uniform: [1.0e-9, 2.0e-2]}, objective.ar_weight: {uniform: [1.0, 3.0]}}",
        "seed=2",
        "sweep.num_trials=2",
        "sweep.metric=fd_digits_cnn",
        "sweep.mode=min",
        f"sweep.pbt={{every_images: {EVERY}, quantile: 0.5}}",
    ]
    composed = compose_experiment("smoke", overrides)
    job = job_of(composed)
    assert [trial.name for trial in job.trials] == ["member-0", "member-1"]
    # As this seed draws them, the weights of the second one hardly move from where they start.
    learns, does_not = (trial.values["optim.base_lr"] for trial in job.trials)
    assert learns > 1e-3 > 1e-8 > does_not
    said = io.StringIO()
    result = run_sweep(job, LiveTable(Console(file=said), "fd_digits_cnn"))
    assert (result.failed, len(result.rows)) == (0, 2)

    sweep = home / "runs" / "population"
    members = members_of(job.experiment)
    taken = [member for member in members.values() if member.generation > 1]
    assert members["member-1"] in taken, said.getvalue()
    for member in taken:
        assert member.taken_from is not None
        run_dir, donor = sweep / member.run_name, sweep / member.taken_from
        assert donor.name.partition(".g")[0] != member.name
        assert 0 < member.taken_at < IMAGES
        # The very weights and optimizer states: every file of the checkpoint is the donor's.
        ours = read(checkpoint_folder(run_dir / "checkpoints", member.taken_at))
        theirs = read(checkpoint_folder(donor / "checkpoints", member.taken_at))
        assert ours.files == theirs.files
        assert any(name.startswith("engine/") for name in ours.files)
        events = Journal(run_dir).events()
        assert [event.run for event in events if isinstance(event, Adopted)] == [donor.name]
        starts = [event.images for event in events if isinstance(event, TrainingStarted)]
        assert starts[0] == member.taken_at
        # It went on with values of its own, inside their bounds.
        state = RunFolder(run_dir).state
        assert state is not None and state.finished
        assert state.config["optim"]["base_lr"] == member.values["optim.base_lr"]
        assert 1e-9 <= member.values["optim.base_lr"] <= 2e-2
        assert 1.0 <= member.values["objective.ar_weight"] <= 3.0

    # While a copy starts, the others go on: there is room for both.
    for run_dir in sweep.glob("member-*"):
        assert sum(isinstance(event, Launched) for event in Journal(run_dir).events()) == 1, run_dir.name

    client = MlflowClient(composed.experiment.tracking_uri)
    newest = members["member-1"]
    page = client.get_run(RunFolder(sweep / newest.run_name).state.mlflow_run_id)  # type: ignore[union-attr]
    assert page.data.tags["taken_from"] == newest.taken_from
    assert page.data.tags["mlflow.parentRunId"] == result.mlflow_run_id
    # Runs that were replaced say so: nothing is left as if it were running.
    runs = client.search_runs([page.info.experiment_id])
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    first = [run for run in runs if run.info.run_name in {f"{sweep.name}/{name}" for name in members}]
    assert len(first) == len(members)
    assert all(run.data.metrics["eval/fd_digits_cnn_n80"] > 0 for run in first)

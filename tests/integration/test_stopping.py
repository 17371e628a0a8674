"""Runs that are killed or stopped as a scheduler does it, and continued by the same command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from tests.conftest import ROOT, run_environment
from tests.integration.conftest import SMOKE

from causalfusion_platform.checkpoint.store import latest
from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.training.train import Outcome, run_training
from causalfusion_platform.tracking.journal import Journal, StepReport


def end_after_a_checkpoint(place: Path, name: str, number: signal.Signals, *overrides: str) -> tuple[int, str]:
    """Run the command; send it a signal in the steps after a checkpoint; return its status and what it printed."""
    command = [sys.executable, "-m", "causalfusion_platform", "train", "smoke", "--local", f"name={name}"]
    run_dir, log = place / "runs" / name, place / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *SMOKE, *overrides],
            cwd=ROOT,
            env=run_environment(CAUSALFUSION_HOME=str(place)),
            stdout=file,
            stderr=file,
        )
        try:
            deadline = time.monotonic() + 280
            while not _is_past_a_checkpoint(run_dir) and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(number)
            return process.wait(timeout=280), log.read_text()
        finally:
            process.kill()


def _is_past_a_checkpoint(run_dir: Path) -> bool:
    saved = max((path.name for path in (run_dir / "checkpoints").glob("images-*")), default=None)
    return saved is not None and any(f"images-{images:012d}" > saved for images in _recorded(run_dir))


def _recorded(run_dir: Path) -> list[int]:
    return [event.images for event in Journal(run_dir).events() if isinstance(event, StepReport)]


def test_killed_run_resumes_bit_exactly(in_process: Outcome, at_place: Path) -> None:
    """SIGKILL after a checkpoint, the same command again: the very samples of the run that nothing stopped."""
    each = "train.log_every_images=64"  # step: those after the checkpoint are recorded, and trained again
    status, said = end_after_a_checkpoint(at_place, "killed", signal.SIGKILL, each)
    assert status == -signal.SIGKILL, said
    stopped_at = latest(at_place / "runs" / "killed" / "checkpoints")
    assert stopped_at is not None
    assert stopped_at[1].images_seen < 1024

    composed = compose_experiment("smoke", ["name=killed", *SMOKE, each])
    summary = run_training(composed, local=True).summary
    assert summary["launches"] == 2
    client = MlflowClient(summary["tracking_uri"])
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"
    history = client.get_metric_history(summary["mlflow_run_id"], "train/loss")
    assert [point.step for point in history] == list(range(64, 1025, 64))  # each once
    resumed, uninterrupted = (
        load_file(Path(s["run_dir"]) / "samples" / "final.safetensors")["latents"]
        for s in (summary, in_process.summary)
    )
    assert torch.equal(resumed, uninterrupted)


def test_a_stopped_run_goes_on_where_it_was_with_another_learning_rate(at_place: Path) -> None:
    """SIGTERM: a checkpoint of the last step, status 75. A key may change then, if it is named."""
    long = ["train.images=6400", "train.sample_every_images=6400", "train.log_every_images=64"]
    status, said = end_after_a_checkpoint(at_place, "stopped", signal.SIGTERM, *long)
    assert status == 75, said
    assert "the same command continues it" in said
    run_dir = at_place / "runs" / "stopped"
    found, state = latest(run_dir / "checkpoints"), RunFolder(run_dir).state
    assert found is not None and state is not None and state.mlflow_run_id is not None
    assert _recorded(run_dir) == list(range(64, found[1].images_seen + 1, 64))
    assert found[1].images_seen < 6400
    client = MlflowClient(state.tracking_uri)
    assert client.get_run(state.mlflow_run_id).info.status == "KILLED"

    faster = compose_experiment("smoke", ["name=stopped", *SMOKE, *long, "optim.base_lr=4.0e-3"])
    with pytest.raises(UserError, match=r"optim\.base_lr: was 0\.002, now 0\.004[\s\S]*--allow-config-change"):
        run_training(faster, local=True)
    summary = run_training(faster, local=True, allow_changes=["optim.base_lr"]).summary
    assert summary["mlflow_run_id"] == state.mlflow_run_id
    rates = client.get_metric_history(state.mlflow_run_id, "train/learning_rate")
    assert [point.step for point in rates] == list(range(64, 6401, 64))  # nothing twice, nothing left out
    before = 2e-3 * 64 / 256
    assert [point.value for point in rates] == [
        pytest.approx(before if point.step <= found[1].images_seen else 2 * before) for point in rates
    ]

"""A training run through every real layer: Ray Train, Ray Data, DeepSpeed, checkpoints, MLflow."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file
from tests.conftest import ROOT, run_environment

from causalfusion import load_weights
from causalfusion_platform.checkpoint.manifest import check
from causalfusion_platform.checkpoint.store import latest
from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.train import Outcome, run_training
from causalfusion_platform.train.progress import Progress

# 16 steps of 64 images: three epochs are begun, so batches straddle their borders.
SMOKE = ["train.checkpoint_every_images=256", "train.log_every_images=128"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def at_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAUSALFUSION_HOME", str(place))
    return place


@pytest.fixture(scope="module")
def on_ray(place: Path, ray_cluster: None) -> tuple[Outcome, list[Progress]]:
    """The smoke experiment with two workers under ZeRO 1, and the progress it showed."""
    seen: list[Progress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALFUSION_HOME", str(place))
        composed = compose_experiment("smoke", ["name=on-ray", "train.num_workers=2", *SMOKE])
        return run_training(composed, show=seen.append), seen


@pytest.fixture(scope="module")
def in_process(place: Path) -> Outcome:
    """The same experiment with one worker, without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALFUSION_HOME", str(place))
        composed = compose_experiment("smoke", ["name=in-process", *SMOKE])
        return run_training(composed, local=True)


@pytest.mark.ray
def test_summary_says_what_happened(on_ray: tuple[Outcome, list[Progress]]) -> None:
    outcome, _ = on_ray
    summary = outcome.summary
    assert not outcome.already_finished
    assert json.loads((Path(summary["run_dir"]) / "summary.json").read_text()) == summary
    assert summary["num_workers"] == 2
    assert summary["zero_stage"] == 1
    assert summary["images_seen"] == 1024
    assert 0 <= summary["class_accuracy"] <= 1
    assert summary["fd_digits_cnn"] > summary["fd_digits_cnn_real"] >= 0
    assert 0 < summary["train_seconds"] < summary["total_seconds"]
    assert sum(summary["stage_seconds"].values()) == pytest.approx(summary["total_seconds"], rel=0.1)
    with Image.open(summary["grid_path"]) as grid:
        assert grid.width > 2 * 48  # two samples of each of the ten classes, and their names
        assert grid.height > 10 * 48


@pytest.mark.ray
def test_progress_reaches_the_driver(on_ray: tuple[Outcome, list[Progress]]) -> None:
    _, seen = on_ray
    assert seen[-1].images == seen[-1].total == 1024
    assert seen[-1].images_per_second > 0


@pytest.mark.ray
def test_checkpoints_are_whole_and_pruned(on_ray: tuple[Outcome, list[Progress]]) -> None:
    root = Path(on_ray[0].summary["run_dir"]) / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["images-000000000768", "images-000000001024"]
    manifest = check(root / "images-000000001024")
    assert (manifest.step, manifest.images_seen, manifest.world_size, manifest.zero_stage) == (16, 1024, 2, 1)
    model = load_weights(root / "images-000000001024" / "weights")
    assert model.config.hidden_size == 32
    assert float(model.head.weight.detach().abs().max()) > 0  # it starts at zero


@pytest.mark.ray
def test_mlflow_has_curves_grids_and_lineage(on_ray: tuple[Outcome, list[Progress]]) -> None:
    summary = on_ray[0].summary
    client = MlflowClient(summary["tracking_uri"])
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(128, 1025, 128))
    assert run.data.metrics["eval/class_accuracy"] == summary["class_accuracy"]
    assert 0 <= run.data.metrics["throughput/data_wait"] <= 1
    assert run.data.params["objective.ar_decay"] == "0.9"
    assert run.data.tags["data.digest"] == summary["data_digest"]
    assert run.data.tags["version.torch"] == torch.__version__
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    found = (re.search(r"samples\W+step\W+(\d+)\W+timestamp.*\.png", path) for path in images)
    assert {int(match[1]) for match in found if match} == {512, 1024}
    assert {"config.yaml", "summary.json"} <= {f.path for f in client.list_artifacts(run.info.run_id)}


@pytest.mark.ray
def test_samples_do_not_depend_on_workers_or_ray(
    on_ray: tuple[Outcome, list[Progress]], in_process: Outcome
) -> None:
    """Two Ray workers fed by Ray Data, and one process reading by itself, train the same model.

    Sums over the batch are taken in another order, so the last digits differ and 16 steps of Adam widen that.
    """
    latents = [
        load_file(Path(summary["run_dir"]) / "samples" / "final.safetensors")["latents"]
        for summary in (on_ray[0].summary, in_process.summary)
    ]
    assert float(latents[0].std()) > 0.1
    torch.testing.assert_close(latents[0], latents[1], rtol=0, atol=2e-3)


@pytest.mark.ray
def test_finished_name_says_so(on_ray: tuple[Outcome, list[Progress]], at_place: Path) -> None:
    before = latest(at_place / "runs" / "on-ray" / "checkpoints")
    composed = compose_experiment("smoke", ["name=on-ray", "train.num_workers=2", *SMOKE])
    outcome = run_training(composed)
    assert outcome.already_finished
    assert outcome.summary == on_ray[0].summary
    assert latest(at_place / "runs" / "on-ray" / "checkpoints") == before


def test_another_configuration_of_a_name_is_refused(in_process: Outcome, at_place: Path) -> None:
    composed = compose_experiment("smoke", ["name=in-process", "objective.ar_decay=0.5", *SMOKE])
    with pytest.raises(UserError, match=r"objective\.ar_decay: was 0\.9, now 0\.5"):
        run_training(composed, local=True)


def test_killed_run_resumes_bit_exactly(in_process: Outcome, at_place: Path) -> None:
    """SIGKILL after a checkpoint, the same command again: the very samples of the run that nothing stopped."""
    command = [
        sys.executable,
        "-m",
        "causalfusion_platform",
        "train",
        "smoke",
        "--local",
        "name=killed",
        *SMOKE,
    ]
    environment = run_environment(CAUSALFUSION_HOME=str(at_place))
    checkpoints = at_place / "runs" / "killed" / "checkpoints"
    with (at_place / "killed.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not list(checkpoints.glob("*/checkpoint.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (at_place / "killed.log").read_text()
    stopped_at = latest(checkpoints)
    assert stopped_at is not None
    assert stopped_at[1].images_seen < 1024

    composed = compose_experiment("smoke", ["name=killed", *SMOKE])
    summary = run_training(composed, local=True).summary
    assert summary["launches"] == 2
    client = MlflowClient(summary["tracking_uri"])
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"
    resumed, uninterrupted = (
        load_file(Path(s["run_dir"]) / "samples" / "final.safetensors")["latents"]
        for s in (summary, in_process.summary)
    )
    assert torch.equal(resumed, uninterrupted)


@pytest.mark.ray
def test_too_many_workers_are_refused_at_once(ray_cluster: None, home: Path) -> None:
    composed = compose_experiment(
        "smoke", ["train.num_workers=64", "train.cpus_per_worker=8", "train.global_batch_size=64"]
    )
    started = time.monotonic()
    with pytest.raises(UserError, match=r"(?s)train\.num_workers=64 × train\.cpus_per_worker=8.*allowed"):
        run_training(composed)
    assert time.monotonic() - started < 60
    assert not (home / "runs" / "smoke").exists()  # nothing half-made is left

"""A training run through every real layer: Ray Train, Ray Data, DeepSpeed, checkpoints, MLflow."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file
from tests.integration.conftest import SMOKE, train

from causalfusion import load_weights
from causalfusion_platform.checkpoint.manifest import check
from causalfusion_platform.checkpoint.posthoc import reconstruct
from causalfusion_platform.checkpoint.store import latest
from causalfusion_platform.cli.main import main
from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.training.train import Outcome, run_training
from causalfusion_platform.tracking.journal import Journal, StepReport
from causalfusion_platform.train.progress import Progress

OnRay = tuple[Outcome, list[Progress]]


@pytest.fixture(scope="module")
def on_ray(place: Path, ray_cluster: None) -> OnRay:
    """The smoke experiment with two workers under ZeRO 1 that Ray Data feeds, and the progress it showed."""
    seen: list[Progress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALFUSION_HOME", str(place))
        settings = ["name=on-ray", "train.num_workers=2", "data.in_memory=false", *SMOKE]
        composed = compose_experiment("smoke", settings)
        return run_training(composed, show=seen.append), seen


@pytest.fixture(scope="module")
def in_parts(place: Path) -> Outcome:
    """The same in one process, a quarter of a batch at a time; more averages, and more choice of checkpoints."""
    return train(
        place,
        "name=in-parts",
        "train.micro_batch_size=16",
        "train.activation_checkpointing=true",
        "train.checkpoint_every_images=128",
        "train.keep_checkpoints=1",
        "train.keep_best=1",
        "train.keep_every_images=512",
        "optim.ema_more_decays=[0.5]",
        "optim.ema_power=[0.1]",
        local=True,
    )


@pytest.mark.ray
def test_summary_says_what_happened(on_ray: OnRay) -> None:
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
def test_progress_reaches_the_driver(on_ray: OnRay) -> None:
    _, seen = on_ray
    assert seen[-1].images == seen[-1].total == 1024
    assert seen[-1].images_per_second > 0


@pytest.mark.ray
def test_checkpoints_are_whole_and_pruned(on_ray: OnRay) -> None:
    root = Path(on_ray[0].summary["run_dir"]) / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["images-000000000768", "images-000000001024"]
    check(root / "images-000000001024")
    model = load_weights(root / "images-000000001024" / "weights")
    assert model.config.hidden_size == 32
    assert float(model.head.weight.detach().abs().max()) > 0  # it starts at zero


@pytest.mark.ray
def test_a_checkpoint_says_what_it_is_of(on_ray: OnRay, at_place: Path) -> None:
    summary = on_ray[0].summary
    run_dir = Path(summary["run_dir"])
    manifest = check(run_dir / "checkpoints" / "images-000000001024")
    assert (manifest.step, manifest.images_seen, manifest.order) == (16, 1024, 0)
    assert (manifest.world_size, manifest.zero_stage, manifest.precision, manifest.seed) == (2, 1, "fp32", 0)
    assert manifest.mlflow_run_id == summary["mlflow_run_id"]
    assert manifest.data_digest == summary["data_digest"]
    config = json.loads((run_dir / "run.json").read_text())["config"]
    assert config["train"]["zero_stage"] is None
    config["train"]["zero_stage"] = manifest.zero_stage  # chosen for two workers
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    assert manifest.config_digest == hashlib.sha256(text.encode()).hexdigest()
    installed = {name: version(name) for name in ("torch", "ray", "deepspeed", "mlflow")}
    assert installed.items() <= manifest.versions.items()
    losses = losses_of(run_dir)
    assert manifest.metrics["loss"] == pytest.approx((losses[896] + losses[1024]) / 2)  # since the one before
    assert len(manifest.grad_norms) == 16
    assert manifest.averages == ["ema-0.99"]


def losses_of(run_dir: Path) -> dict[int, float]:
    """Images → loss, from the journal."""
    return {event.images: event.loss for event in Journal(run_dir).events() if isinstance(event, StepReport)}


@pytest.mark.ray
def test_mlflow_has_curves_grids_and_lineage(on_ray: OnRay) -> None:
    summary = on_ray[0].summary
    client = MlflowClient(summary["tracking_uri"])
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(128, 1025, 128))
    assert run.data.metrics["eval/class_accuracy"] == summary["class_accuracy"]
    described = run.data.tags["mlflow.note.content"]  # its charts round to two decimals
    assert f"| class_accuracy | {summary['class_accuracy']:.4g} |\n" in f"{described}\n"
    measured = run.data.metrics
    for share in ("throughput/data_wait", "throughput/checkpoint_stall", "throughput/mfu", "time/goodput"):
        assert 0 < measured[share] < 1, share
    rates = [f"throughput/{of}" for of in ("images_per_second", "tokens_per_second", "tflops_per_worker")]
    assert all(measured[rate] > 0 for rate in rates)
    assert 0.05 < measured["memory/cpu_gib"] < psutil.virtual_memory().total / 2**30
    lasted = (run.info.end_time - run.info.start_time) / 1000
    times = {key: value for key, value in measured.items() if key.startswith("time/") and key != "time/goodput"}
    assert measured["time/goodput"] == pytest.approx(times["time/useful"] / sum(times.values()))
    assert sum(times.values()) < lasted
    assert run.data.params["objective.ar_decay"] == "0.9"
    assert run.data.tags["data.digest"] == summary["data_digest"]
    assert run.data.tags["version.torch"] == torch.__version__
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    found = (re.search(r"samples~grid\+step\+(\d+)\+timestamp.*\.png", path) for path in images)
    assert {int(match[1]) for match in found if match} == {512, 1024}
    assert {"config.yaml", "summary.json"} <= {f.path for f in client.list_artifacts(run.info.run_id)}


@pytest.mark.ray
def test_the_journal_accounts_for_the_run(
    on_ray: OnRay, at_place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["causalfusion", "runs", "show", "on-ray", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = json.loads(capsys.readouterr().out)
    summary = on_ray[0].summary
    assert (shown["status"], shown["images"], shown["step"]) == ("finished", 1024, 16)
    assert (shown["launches"], shown["attempts"], shown["incidents"]) == (1, 1, {})
    assert [one["name"] for one in shown["checkpoints"]] == ["images-000000000768", "images-000000001024"]
    assert shown["summary"] == summary
    assert shown["seconds"] == summary["time_accounted"]
    events = Journal(Path(summary["run_dir"])).events()
    assert sum(shown["seconds"].values()) == pytest.approx(events[-1].time - events[0].time)
    # Nothing went wrong: all that was trained is useful.
    steps = [event for event in events if isinstance(event, StepReport)][-1]
    assert shown["seconds"]["useful"] == pytest.approx(steps.step_seconds)
    assert shown["goodput"] == pytest.approx(steps.step_seconds / sum(shown["seconds"].values()))


@pytest.mark.ray
def test_samples_do_not_depend_on_workers_or_ray(on_ray: OnRay, in_process: Outcome) -> None:
    """Two Ray workers fed by Ray Data, and one process reading by itself, train the same model.

    Sums over the batch are taken in another order, so the last digits differ and 16 steps of Adam widen that.
    """
    latents = [
        load_file(Path(summary["run_dir"]) / "samples" / "final.safetensors")["latents"]
        for summary in (on_ray[0].summary, in_process.summary)
    ]
    assert float(latents[0].std()) > 0.1
    torch.testing.assert_close(latents[0], latents[1], rtol=0, atol=2e-3)


def test_a_batch_in_parts_trains_the_same_model(in_parts: Outcome, in_process: Outcome) -> None:
    """With activations computed anew, and averages beside the one that is sampled from."""
    parts, whole = (losses_of(Path(outcome.summary["run_dir"])) for outcome in (in_parts, in_process))
    assert parts == pytest.approx(whole, rel=1e-5)
    latents = [
        load_file(Path(outcome.summary["run_dir"]) / "samples" / "final.safetensors")["latents"]
        for outcome in (in_parts, in_process)
    ]
    torch.testing.assert_close(latents[0], latents[1], rtol=0, atol=2e-3)


def test_the_checkpoints_that_were_asked_for_are_kept(in_parts: Outcome) -> None:
    """The newest, the multiples of 512 images, and the one with the lowest loss."""
    run_dir = Path(in_parts.summary["run_dir"])
    losses = losses_of(run_dir)
    best = min(losses, key=lambda images: losses[images])
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == [f"images-{images:012d}" for images in sorted({512, best, 1024})]
    assert len(kept) == 3


def test_averages_are_kept_and_combined(in_parts: Outcome, tmp_path: Path) -> None:
    run_dir = Path(in_parts.summary["run_dir"])
    newest = run_dir / "checkpoints" / "images-000000001024"
    assert check(newest).averages == ["ema-0.99", "ema-0.5", "power-0.10"]
    main_one, short, power = (
        load_weights(newest / folder).state_dict()
        for folder in ("weights", "averages/ema-0.5", "averages/power-0.10")
    )
    assert len({float(state["head.weight"].double().norm()) for state in (main_one, short, power)}) == 3
    said = reconstruct(run_dir, 0.1, tmp_path / "chosen")
    assert "from 3 stored averages" in said
    chosen = load_weights(tmp_path / "chosen").state_dict()
    for key, stored in power.items():  # what was asked for is one of those that are stored
        torch.testing.assert_close(chosen[key], stored, rtol=0, atol=1e-6)


@pytest.mark.ray
def test_finished_name_says_so(on_ray: OnRay, at_place: Path) -> None:
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


@pytest.mark.ray
def test_too_many_workers_are_refused_at_once(ray_cluster: None, home: Path) -> None:
    composed = compose_experiment(
        "smoke", ["train.num_workers=64", "train.cpus_per_worker=8", "train.global_batch_size=64"]
    )
    with pytest.raises(UserError, match=r"(?s)train\.num_workers=64 × train\.cpus_per_worker=8.*allowed"):
        run_training(composed)
    assert not (home / "runs" / "smoke").exists()  # nothing half-made is left

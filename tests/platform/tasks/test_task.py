"""The seam: a second task trains from the command's entry to its summary, and nothing else knows of it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.platform.tasks.toy import BODY, HEAD, LatentMean, Network, Regression

from causalfusion import draws
from causalfusion_platform.assemble import open_dataset
from causalfusion_platform.config.compose import Composed, compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import local_batches
from causalfusion_platform.data.validate import open_shards
from causalfusion_platform.launch.training.train import check_inputs, run_training
from causalfusion_platform.tasks import check_data, open_task
from causalfusion_platform.tracking.mlflow import client

TOY = "task=tests.platform.tasks.toy:LatentMean"
STEPS, BATCH = 8, 64


def composed(name: str, *overrides: str) -> Composed:
    """An experiment of the toy task: 8 steps, checkpoints every 2."""
    return compose_experiment(
        "smoke",
        [
            TOY,
            f"name={name}",
            f"train.images={STEPS * BATCH}",
            f"train.checkpoint_every_images={2 * BATCH}",
            f"train.log_every_images={BATCH}",
            "train.precision=fp32",
            "optim.warmup_images=256",
            *overrides,
        ],
    )


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a run's newest checkpoint."""
    newest = max((run / "checkpoints").glob("images-*"))
    return load_file(newest / "weights" / "model.safetensors")


def rate_by_hand(step: int, peak: float, *, cosine: bool) -> float:
    """Four steps of warmup, then a constant rate, or a cosine by MAE's rule down to 1e-4."""
    warm = 256 // BATCH
    if not cosine:
        return peak * min(1, (step + 1) / warm)
    if step < warm:
        return peak * step / warm
    return 1e-4 + (peak - 1e-4) * (1 + math.cos(math.pi * (step - warm) / (STEPS - warm))) / 2


def by_hand(experiment: Composed) -> dict[str, torch.Tensor]:
    """The same training in plain torch: AdamW with two groups, and the average of the weights."""
    e = experiment.experiment
    torch.manual_seed(draws.stream_seed(e.seed, "initial weights"))
    model = Network(64)
    groups = [
        {"params": list(part.parameters()), "weight_decay": settings["weight_decay"], "scale": settings["lr_scale"]}
        for part, settings in ((model.body, BODY), (model.head, HEAD))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=e.optim.betas, eps=e.optim.eps)
    average = copy.deepcopy(model.state_dict())
    data = open_dataset(e, Manifest.read(e.data.path), LatentMean(e))
    for number, batch in enumerate(
        local_batches(data, batch_size=BATCH, start=0, stop=STEPS * BATCH, collate=LatentMean.collate)
    ):
        rate = rate_by_hand(number, e.learning_rate, cosine=e.optim.schedule == "cosine")
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        optimizer.zero_grad()
        loss = (model(batch.latents, batch.lengths) - batch.latents.mean(dim=(1, 2, 3))).square().mean()
        loss.backward()
        if e.optim.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), e.optim.clip_grad_norm)
        optimizer.step()
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - min(0.99, (2 + number) / (11 + number)))
    return average


COSINE = ("optim.schedule=cosine", "optim.min_lr=0.0001")


@pytest.mark.parametrize(("stage", "schedule"), [(0, COSINE), (1, ()), (2, COSINE), (3, COSINE)])
def test_each_group_keeps_its_rate_and_decay_also_after_a_resume(
    home: Path, stage: int, schedule: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = composed("toy", f"train.zero_stage={stage}", *schedule)
    monkeypatch.setattr(Regression, "interrupt_at", 5)
    with pytest.raises(KeyboardInterrupt):
        run_training(experiment, local=True)
    assert weights_of(home / "runs" / "toy")
    outcome = run_training(experiment, local=True)
    expected = by_hand(experiment)
    for name, tensor in weights_of(home / "runs" / "toy").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)
    bias = float(expected["head.bias"])
    assert outcome.summary["bias"] == pytest.approx(bias, rel=1e-5)
    assert "class_accuracy" not in outcome.summary
    assert open_task(experiment.experiment).show_scores(outcome.summary) == [("bias", f"{bias:.4g}")]
    assert json.loads((home / "runs/toy/summary.json").read_text())["rows"] == 1797


def test_its_metrics_are_named_by_the_task(home: Path) -> None:
    experiment = composed("named")
    outcome = run_training(experiment, local=True)
    api = client(experiment.experiment.tracking_uri)
    found = api.get_run(outcome.summary["mlflow_run_id"]).data.metrics
    assert {"train/loss", "train/absolute_error", "train/longest_key", "eval/bias"} <= found.keys()
    assert not {"train/mse", "train/ar_steps"} & found.keys()
    assert not list((home / "runs/named").glob("samples/*.png"))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("texts", "is not a task"),
        ("no.such:Task", "cannot be imported"),
        ("tests.platform.tasks.toy:Absent", "cannot be imported"),
        ("tests.platform.tasks.toy:Network", "is not a task"),
        ("causalfusion_platform.tasks:Task", "is not a task"),
        (".toy:LatentMean", "cannot be imported"),
    ],
)
def test_a_task_that_is_not_there(name: str, fault: str) -> None:
    experiment = compose_experiment("smoke", [f"task={name}"]).experiment
    with pytest.raises(UserError, match=fault) as caught:
        open_task(experiment)
    assert "allowed: class_to_image, text_image, classification, captioning, or package.module:Class" in str(
        caught.value
    )


def test_mirrored_images_are_refused_for_every_task_that_reads_latents(home: Path) -> None:
    experiment = composed("mirrored", "data.flip=true").experiment
    with pytest.raises(UserError, match=r"data\.flip=true, but the shards in .* hold no mirrored images"):
        check_inputs(experiment)


@pytest.mark.parametrize(
    ("field", "remedy"), [("captions", "causalfusion data digits"), ("audio", "name other fields")]
)
def test_a_field_that_the_shards_lack(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch, field: str, remedy: str
) -> None:
    monkeypatch.setattr(LatentMean, "fields", ("latent", "key", field))
    task = open_task(composed("lacking").experiment)
    with pytest.raises(UserError) as caught:
        check_data(task, open_shards(digits_folder, hashes=False))
    for part in (TOY, f"reads {field}", str(digits_folder), "row_id, label, key, mean", remedy):
        assert part in str(caught.value)


def test_a_batch_of_noise_is_as_a_read_one(home: Path) -> None:
    experiment = composed("noise").experiment
    data = open_dataset(experiment, write_digits(experiment.data.path), LatentMean(experiment))
    read = next(local_batches(data, batch_size=3, start=0, stop=3, collate=LatentMean.collate))
    made = open_task(experiment).example_batch(3)
    assert made.samples == read.samples
    assert (made.latents.shape, made.latents.dtype) == (read.latents.shape, read.latents.dtype)
    assert made.lengths.shape == read.lengths.shape

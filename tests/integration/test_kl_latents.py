"""Training on the latents of a KL autoencoder: four channels, a posterior to draw from, and mirrored images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.platform.data.tiny_vaes import moments_of, new_kl

from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.data.manifest import AutoencoderId, Description, SourceId
from causalfusion_platform.data.shards import Rows, write_shards
from causalfusion_platform.launch.evaluating.analyze import analyze_run
from causalfusion_platform.launch.training.train import Outcome, run_training
from causalfusion_platform.tracking.journal import Journal, StepReport

IMAGES = 160  # of 64×64 pixels; two epochs are begun
SHORT = [
    "data.prepare=false",
    "model.in_channels=4",
    "train.images=256",
    "train.log_every_images=64",
    "train.sample_every_images=256",
    "train.precision=fp32",
    "optim.base_lr=6.0e-2",  # a new model predicts zero, whatever the latents: it must move to tell them apart
]


def write_latents(folder: Path) -> None:
    """Encode random images as the tiny autoencoder does it, mirrored images too."""
    vae = new_kl()
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 64, 64, 3), dtype=np.uint8)
    scale = float(vae.config.scaling_factor)
    moments = [*moments_of(vae, images), *moments_of(vae, images[:, :, ::-1].copy())]
    mean, std, mean_flip, std_flip = ((scale * tensor).numpy().astype(np.float16) for tensor in moments)
    rows = Rows(
        row_ids=np.arange(IMAGES),
        labels=np.arange(IMAGES) % 10,
        keys=[f"{row}.png" for row in range(IMAGES)],
        mean=mean,
        std=std,
        mean_flip=mean_flip,
        std_flip=std_flip,
    )
    what = Description(
        source=SourceId(kind="folders", location="random numbers", items=IMAGES, digest="0" * 64),
        autoencoder=AutoencoderId(name="AutoencoderKL", scale=scale),
        shape=(4, 8, 8),
        posterior=True,
        flip=True,
        class_names=[str(label) for label in range(10)],
    )
    write_shards(rows, what, folder, rows_per_shard=64, rows_per_group=16)


def losses_of(outcome: Outcome) -> list[float]:
    events = Journal(Path(outcome.summary["run_dir"])).events()
    return [event.loss for event in events if isinstance(event, StepReport)]


def test_training_draws_from_posteriors_and_mirrors(home: Path) -> None:
    write_latents(compose_experiment("smoke", []).experiment.data.path)

    def train(name: str, *overrides: str) -> Outcome:
        return run_training(compose_experiment("smoke", [f"name={name}", *SHORT, *overrides]), local=True)

    drawn = train("drawn")
    assert len(losses_of(drawn)) == 4
    for plain in ("data.posterior=mean", "data.flip=false"):
        other = train(plain.partition("=")[0], plain)
        assert losses_of(other)[-1] != pytest.approx(losses_of(drawn)[-1], rel=1e-4)
    summary = drawn.summary
    assert summary["class_accuracy"] is None  # latents are not images that the classifier could look at
    assert "fd_data_cnn" in summary  # the name does not say digits
    samples = load_file(Path(summary["run_dir"]) / "samples" / "final.safetensors")["latents"]
    assert samples.shape == (20, 4, 8, 8)
    assert bool(torch.isfinite(samples).all())

    # The parts of Figure 4 that need no pixels are drawn.
    out = analyze_run(Path(summary["run_dir"]), home / "out", ar_steps=[1, 2], diffusion_steps=[2], num=10)
    assert {path.name for path in out.iterdir()} == {"ar_step_sizes.png", "loss_by_step.png", "analysis.json"}
    numbers = json.loads((out / "analysis.json").read_text())
    assert set(numbers) == {"ar_step_sizes", "loss_by_step"}
    assert [len(losses) for losses in numbers["loss_by_step"].values()] == [1, 2]

"""Classification with the paper's augmentation: images of shards, RandAug, mixing, and a frozen autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.platform.data.tiny_vaes import new_kl

from causalfusion.representation import Classifier, load_finetuned
from causalfusion_platform.config.compose import Composed, compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.augment.crop_flip import evaluation_crop
from causalfusion_platform.data.manifest import AutoencoderId, Description, SourceId, Split
from causalfusion_platform.data.shards import Rows, write_shards
from causalfusion_platform.launch.training.train import check_inputs, run_training

SIDE, ROWS = 40, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of 40×40 pixels in two splits, and an autoencoder with an eighth of the side."""
    folder = tmp_path_factory.mktemp("pixels")
    for seed, split in enumerate(("train", "val")):
        write_images(folder / split, seed, split)  # type: ignore[arg-type]
    new_kl().save_pretrained(folder / "vae")
    return folder


def write_images(folder: Path, seed: int, split: Split) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (ROWS, 3, SIDE, SIDE))
    rows = Rows(
        row_ids=np.arange(ROWS),
        labels=np.arange(ROWS) % 3,
        keys=[f"{split} {row}" for row in range(ROWS)],
        mean=(levels / 127.5 - 1).astype(np.float16),
    )
    description = Description(
        split=split,
        source=SourceId(kind="folders", location=split, items=ROWS, digest=f"{seed:064d}"),
        autoencoder=AutoencoderId(name="identity", scale=1.0),
        shape=(3, SIDE, SIDE),
        class_names=["one", "two", "three"],
    )
    write_shards(rows, description, folder, rows_per_shard=16, rows_per_group=8)


def composed(folder: Path, *overrides: str) -> Composed:
    """Two steps of a tiny model on 4×4 latents of 32×32 pixels."""
    return compose_experiment(
        "finetune/classify",
        [
            "name=pixels",
            f"runs={folder}/runs",
            f"data.path={folder}/train",
            f"data.validation={folder}/val",
            f"finetune.vae={folder}/vae",
            "model.preset=tiny",
            "model.in_channels=4",
            "model.input_size=4",
            "model.patch_size=2",
            "train.global_batch_size=8",
            "train.num_workers=1",
            "train.gpus_per_worker=0",
            "train.images=16",
            "train.precision=fp32",
            "train.log_every_images=8",
            "train.checkpoint_every_images=16",
            "optim.warmup_epochs=null",
            *overrides,
        ],
    )


def test_the_papers_recipe_runs_and_is_measured_on_centres_of_images(folder: Path) -> None:
    """The accuracy is computed again: Pillow's centre crop, diffusers' mean, the weights of the run."""
    outcome = run_training(composed(folder), local=True)
    again = run_training(composed(folder, "name=again"), local=True)
    model = load_finetuned(Path(outcome.summary["weights_path"]))
    assert isinstance(model, Classifier)
    assert model.config.num_classes == 3
    levels = np.random.default_rng(1).integers(0, 256, (ROWS, 3, SIDE, SIDE)).astype(np.uint8)
    centres = [evaluation_crop(Image.fromarray(image.transpose(1, 2, 0)), 32) for image in levels]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in centres])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = new_kl().encode(pixels).latent_dist.mean * 0.5
        found = model(latents).argmax(dim=1)
    right = (found == torch.arange(ROWS) % 3).double().mean()
    assert outcome.summary["top1"] == again.summary["top1"] == pytest.approx(float(right), abs=1e-12)
    assert outcome.summary["top5"] == 1
    assert outcome.summary["num_images"] == ROWS


def test_augmented_images_reach_the_autoencoder(folder: Path) -> None:
    """Without any augmentation another model is trained: the recipe's draws have an effect."""
    plain = {"rand_augment": "null", "erasing": 0, "mixup": 0, "cutmix": 0, "crop_scale": "[1,1]"}
    overrides = [f"finetune.augment.{key}={value}" for key, value in plain.items()]
    one, other = (
        load_finetuned(Path(run_training(composed(folder, *more), local=True).summary["weights_path"]))
        for more in ((), ("name=plain", *overrides))
    )
    assert not torch.equal(one.backbone.patch_embed.weight, other.backbone.patch_embed.weight)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["finetune.vae={folder}/absent"], ["no autoencoder in"]),
        (["model.in_channels=3"], ["4 latent channels, the model 3"]),
        (["finetune.vae=null"], ["need an autoencoder to become images"]),
    ],
)
def test_an_autoencoder_that_does_not_suit_is_refused(folder: Path, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        check_inputs(composed(folder, *(text.format(folder=folder) for text in overrides)).experiment)
    for part in parts:
        assert part in str(refused.value)

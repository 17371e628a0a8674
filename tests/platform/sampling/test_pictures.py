"""Image files in and out, and the autoencoder between latents and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from causalfusion import DiffusionConfig, SamplingConfig, build_model, preset, sample, save_weights
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.sampling.interactive import InteractiveSampler, check_picture

FEW = SamplingConfig(num_inference_steps=3, num_ar_steps=2, guidance_scale=1.5)


def test_an_image_file_is_read_at_the_models_size(sampler: InteractiveSampler, own_folder: Path) -> None:
    """The means of 2×2 pixels: white, and below it half black, half white."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    pixels[8:, ::2] = 255
    Image.fromarray(pixels).save(own_folder / "digit.png")
    latents = sampler.originals(str(own_folder / "digit.png"), 3, 0)
    assert latents.shape == (3, 1, 8, 8)
    expected = torch.ones(8, 8)
    expected[4:] = 0
    for latent in latents:
        torch.testing.assert_close(latent[0], expected, rtol=0, atol=1 / 127.5)


def test_a_file_that_is_no_image(sampler: InteractiveSampler, own_folder: Path) -> None:
    (own_folder / "digit.png").write_text("no picture")
    with pytest.raises(UserError, match=r"digit\.png is not a readable image"):
        sampler.originals("digit.png", 1, 0)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_grids_have_a_cell_for_each_sample(sampler: InteractiveSampler, own_folder: Path) -> None:
    """Cells of 48 pixels, a gap around them, and names at the left."""
    images = torch.zeros(6, 1, 8, 8)
    sampler.draw(images, [3, 0], own_folder / "new/grid.png")
    width, height = size_of(own_folder / "new/grid.png")
    gap = (height - 2 * 48) // 3
    assert height == 2 * 48 + 3 * gap
    assert 3 * (48 + gap) < width < 4 * (48 + gap)
    sampler.draw_edits(images[:2], images, "3", [0, 1, 2], own_folder / "edits.png")
    assert size_of(own_folder / "edits.png")[1] == 4 * 48 + 5 * gap


@pytest.mark.parametrize("name", ["grid", "grid.", "grid.xyz", "grid.npy"])
def test_a_picture_needs_a_suffix_of_pictures(own_folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"/{name} has no suffix of pictures; .* samples.png"):
        check_picture(own_folder / name)
    for fine in ("grid.png", "GRID.PNG", "folder.d/grid.jpg", "grid.webp"):
        check_picture(own_folder / fine)


# Latents of an autoencoder


def latent_model(folder: Path, channels: int) -> Path:
    torch.manual_seed(0)
    model = build_model(preset("tiny", in_channels=channels))
    save_weights(folder, model.config, model.state_dict())
    return folder


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder with random weights: 4 channels, an eighth of the image's side."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
    ).save_pretrained(folder)
    return folder


def refusal(weights: Path, vae: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        InteractiveSampler.open(weights, FEW, [], vae)
    return str(caught.value)


def decoded(folder: Path, latents: Tensor) -> Tensor:
    from diffusers import AutoencoderKL

    with torch.no_grad():
        images: Tensor = AutoencoderKL.from_pretrained(folder).eval().decode(latents / 0.5).sample
    return images


def test_latents_become_images(own_folder: Path, vae: Path) -> None:
    sampler = InteractiveSampler.open(latent_model(own_folder / "weights", 4), FEW, [], vae)
    images = sampler.sample([1], 2, 0)
    assert images.shape == (2, 3, 64, 64)
    latents = sample(sampler.model, torch.tensor([1, 1]), FEW, DiffusionConfig(), seed=0)
    torch.testing.assert_close(images, decoded(vae, latents), rtol=1e-4, atol=1e-4)
    sampler.draw(images, [1], own_folder / "grid.png")
    width, height = size_of(own_folder / "grid.png")
    assert height > 64
    assert width > 2 * 64


def test_an_image_becomes_latents(own_folder: Path, vae: Path) -> None:
    from diffusers import AutoencoderKL

    sampler = InteractiveSampler.open(latent_model(own_folder / "weights", 4), FEW, [], vae)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(own_folder / "image.png")
    latents = sampler.originals(str(own_folder / "image.png"), 2, 0)
    assert latents.shape == (2, 4, 8, 8)
    image = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        mean = AutoencoderKL.from_pretrained(vae).eval().encode(image).latent_dist.mean
    torch.testing.assert_close(latents[1:], 0.5 * mean, rtol=1e-4, atol=1e-4)
    edited = sampler.edit(latents, "top", [1], 0)
    assert edited.shape == (2, 3, 64, 64)


def test_an_autoencoder_that_is_missing_or_another(own_folder: Path, vae: Path) -> None:
    four = latent_model(own_folder / "four", 4)
    message = refusal(four, None)
    assert "latents of 4 channels need an autoencoder to become images: --vae FOLDER" in message
    assert "causalfusion weights import kl16.ckpt FOLDER" in message
    assert f"no autoencoder in {own_folder / 'nowhere'}" in refusal(four, own_folder / "nowhere")
    assert f"no autoencoder in {four}: there is no diffusion_pytorch_model" in refusal(four, four)
    (four / "diffusion_pytorch_model.safetensors").write_bytes((four / "model.safetensors").read_bytes())
    assert f"no autoencoder in {four}: there is no decoder." in refusal(four, four)
    sixteen = latent_model(own_folder / "sixteen", 16)
    assert f"the autoencoder in {vae} has 4 latent channels, the model 16" in refusal(sixteen, vae)

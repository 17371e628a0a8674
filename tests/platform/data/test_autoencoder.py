"""What autoencoders make of images and latents: diffusers' own arithmetic, with tiny random ones; mirror images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.platform.data.tiny_vaes import moments_of, new_kl, new_tiny, pixels_of

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.autoencoder import encode_both, open_autoencoder, open_encoder
from causalfusion_platform.data.autoencoder.encoder import exact_convolutions


def test_the_posterior_in_the_models_scale(kl_folder: Path, images: NDArray[np.uint8]) -> None:
    encoder = open_encoder(str(kl_folder))
    assert (encoder.name, encoder.scale, encoder.has_posterior) == ("AutoencoderKL", 0.5, True)
    assert (encoder.downsampling, encoder.latent_shape(32), encoder.latent_shape(8)) == (8, (4, 4, 4), (4, 1, 1))
    mean, std = encoder.encode(images)
    assert std is not None
    assert (mean.shape, mean.dtype, std.shape, std.dtype) == ((3, 4, 4, 4), torch.float32) * 2
    assert not (mean.requires_grad or mean.is_inference())
    expected_mean, expected_std = moments_of(new_kl(), images)
    torch.testing.assert_close(mean, 0.5 * expected_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(std, 0.5 * expected_std, rtol=1e-5, atol=1e-6)
    assert mean.std() > 0.01
    assert expected_std.std() > 0.01

    with torch.no_grad():
        posterior = new_kl().encode(pixels_of(images)).latent_dist
    torch.testing.assert_close(mean, 0.5 * posterior.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(std, 0.5 * posterior.std, rtol=1e-5, atol=1e-6)


def test_latents_without_a_posterior(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    new_tiny().save_pretrained(tmp_path)
    encoder = open_encoder(str(tmp_path))
    assert (encoder.name, encoder.scale, encoder.has_posterior) == ("AutoencoderTiny", 0.75, False)
    assert (encoder.downsampling, encoder.latent_shape(32)) == (4, (3, 8, 8))
    latents, std = encoder.encode(images)
    assert std is None
    with torch.no_grad():
        expected = new_tiny().encode(pixels_of(images)).latents
    assert latents.shape == (3, 3, 8, 8)
    torch.testing.assert_close(latents, 0.75 * expected, rtol=1e-5, atol=1e-6)
    assert encode_both(encoder, images).keys() == {"mean", "mean_flip"}


def test_pixels_are_latents(images: NDArray[np.uint8]) -> None:
    """Every one of the 256 values, and back; images of one channel too."""
    encoder = open_encoder("identity")
    assert (encoder.name, encoder.scale, encoder.has_posterior) == ("identity", 1.0, False)
    assert (encoder.weights_sha256, encoder.downsampling, encoder.latent_shape(7)) == (None, 1, (3, 7, 7))
    latents, std = encoder.encode(images)
    assert std is None
    torch.testing.assert_close(latents, pixels_of(images), rtol=0, atol=1e-7)
    assert (latents.min().item(), latents.max().item()) == (-1, 1)
    assert torch.equal(encoder.decode(latents), latents)
    assert np.array_equal(((latents + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(), images)
    gray = open_autoencoder(None, 1)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert gray.latent_shape(16) == (1, 16, 16)
    assert torch.equal(gray.encode(every)[0].flatten(), (torch.arange(256.0) / 127.5 - 1))


def test_latents_are_decoded(kl_folder: Path) -> None:
    latents = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    images = open_encoder(str(kl_folder)).decode(latents)
    with torch.no_grad():
        expected = new_kl().decode(latents / 0.5).sample
    assert images.shape == (2, 3, 24, 24)
    assert not images.is_inference()
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


def test_mirror_images_are_encoded_by_themselves(kl_folder: Path, images: NDArray[np.uint8]) -> None:
    encoder = open_encoder(str(kl_folder))
    both = encode_both(encoder, images)
    assert list(both) == ["mean", "std", "mean_flip", "std_flip"]
    vae = new_kl()
    plain = moments_of(vae, images)
    mirrored = moments_of(vae, np.flip(images, axis=2).copy())
    for name, expected in zip(both, (*plain, *mirrored), strict=True):
        torch.testing.assert_close(both[name], 0.5 * expected, rtol=1e-5, atol=1e-6)
    assert (both["mean"].flip(3) - both["mean_flip"]).abs().max() > 0.01
    assert (both["mean"].flip(2) - both["mean_flip"]).abs().max() > 0.01
    alone = encode_both(encoder, torch.from_numpy(images), flip=False)
    assert list(alone) == ["mean", "std"]
    assert all(torch.equal(alone[name], both[name]) for name in alone)


def test_the_same_images_give_the_same_bits(kl_folder: Path, images: NDArray[np.uint8]) -> None:
    """Also from arrays that cannot be written to or lie backwards in memory, and in another process's encoder."""
    frozen = images.copy()
    frozen.flags.writeable = False
    backwards = np.flip(np.flip(images, axis=2).copy(), axis=2)
    first = open_encoder(str(kl_folder)).encode(images)[0]
    for again in (frozen, backwards, torch.from_numpy(images)):
        assert torch.equal(open_encoder(str(kl_folder)).encode(again)[0], first)


def test_cudnn_is_exact_while_encoding() -> None:
    cudnn: Any = torch.backends.cudnn

    def flags() -> tuple[bool, ...]:
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    before = flags()
    with exact_convolutions(torch.device("cuda")):
        assert flags() == (True, False, True, False) != before
    assert flags() == before
    with exact_convolutions(torch.device("cpu")):
        assert flags() == before


def test_autocast_only_where_asked_for(kl_folder: Path, images: NDArray[np.uint8]) -> None:
    """bfloat16 has 8 bits: latents differ, but by no more than that brings."""
    exact = open_encoder(str(kl_folder)).encode(images)
    rough = open_encoder(str(kl_folder), bf16=True).encode(images)
    for one, other in zip(exact, rough, strict=True):
        assert one is not None
        assert other is not None
        assert other.dtype == torch.float32
        assert 1e-5 < (one - other).abs().max() < 0.05


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3, 32, 32), np.uint8),
        ((2, 32, 32, 1), np.uint8),
        ((2, 32, 24, 3), np.uint8),
        ((32, 32, 3), np.uint8),
        ((2, 32, 32, 3), np.float32),
    ],
)
def test_what_is_no_batch_of_images(kl_folder: Path, shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, H, H, 3\) uint8, got \(.*\) (uint8|float32)"):
        open_encoder(str(kl_folder)).encode(np.zeros(shape, dtype))


@pytest.mark.parametrize(("size", "named"), [(0, 8), (4, 8), (31, 24), (60, 56)])
def test_sizes_that_do_not_fit(kl_folder: Path, size: int, named: int) -> None:
    encoder = open_encoder(str(kl_folder))
    message = (
        rf"{size}×{size} pixels do not fit the AutoencoderKL, .* 8th\n  name a multiple of 8, .*--size {named}$"
    )
    with pytest.raises(UserError, match=message):
        encoder.latent_shape(size)
    if size:
        with pytest.raises(UserError, match=message):
            encoder.encode(np.zeros((1, size, size, 3), np.uint8))

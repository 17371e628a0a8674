"""Tiny random autoencoders, images for them, and what they are to make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def new_kl(**changes: Any) -> Any:
    """An eighth of the side, 4 channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.5,
        **changes,
    }
    return AutoencoderKL(**config).eval()


def new_tiny(**changes: Any) -> Any:
    """A quarter of the side, 3 channels; the decoder has one level less, which says nothing of the encoder."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    config = {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1),
        "latent_channels": 3,
        "scaling_factor": 0.75,
        **changes,
    }
    return AutoencoderTiny(**config).eval()


def random_images() -> NDArray[np.uint8]:
    """Three images of 32×32 pixels without any symmetry; black and white are among the pixels."""
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    return images


def pixels_of(images: NDArray[np.uint8]) -> Tensor:
    """(B, 3, H, W) in [−1, 1], through float64."""
    return torch.from_numpy(np.moveaxis(images.astype(np.float64), 3, 1) / 127.5 - 1).float()


@torch.no_grad()
def moments_of(vae: Any, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior as LDM writes it down: half of the output is log σ²."""
    mean, log_variance = vae.quant_conv(vae.encoder(pixels_of(images))).chunk(2, dim=1)
    return mean, (log_variance.clamp(-30, 20) / 2).exp()

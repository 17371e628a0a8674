"""From latents to images and back: a diffusers autoencoder, or nothing where latents are pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.errors import UserError


class Pixels:
    """Latents are images in [−1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def encode(self, images: Tensor) -> Tensor:
        return images


class Autoencoder:
    """A diffusers autoencoder; latents are in the model's scale."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, channels, h, w) to images (B, 3, H, W) in about [−1, 1], one after the other."""
        images = [self.vae.decode(one[None].to(self.vae.device) / self.scale).sample.cpu() for one in latents]
        return torch.cat(images)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Map images in [−1, 1] to latents: the mean of the posterior."""
        posteriors = [self.vae.encode(image[None].to(self.vae.device)).latent_dist for image in images]
        return torch.cat([posterior.mean.cpu() * self.scale for posterior in posteriors])


def open_autoencoder(folder: Path | None, channels: int, device: str = "cpu") -> Pixels | Autoencoder:
    """Return the autoencoder in a diffusers folder; without one, latents of 1 or 3 channels are pixels.

    Raises:
        UserError: one is needed and not given, or the folder holds none.
    """
    if folder is None:
        if channels in (1, 3):
            return Pixels()
        raise UserError(
            f"latents of {channels} channels need an autoencoder to become images: --vae FOLDER\n"
            f"  MAR's KL-16 (16 channels): causalfusion weights import kl16.ckpt FOLDER; "
            f"SD's (4 channels): a diffusers AutoencoderKL folder"
        )
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        if not (folder / file).is_file():  # diffusers would look for a model of that name on its hub
            raise UserError(f"no autoencoder in {folder}: there is no {file}")
    from diffusers import AutoencoderKL

    try:
        # Low memory use needs a library that is not asked for, and diffusers warns where it is missing.
        vae, found = AutoencoderKL.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"no autoencoder in {folder}: {str(error).splitlines()[0]}") from error
    if found["missing_keys"]:  # diffusers would leave them random
        raise UserError(f"no autoencoder in {folder}: there is no {sorted(found['missing_keys'])[0]}")
    if vae.config.latent_channels != channels:
        raise UserError(
            f"the autoencoder in {folder} has {vae.config.latent_channels} latent channels, the model {channels}"
        )
    return Autoencoder(vae.to(device).eval())

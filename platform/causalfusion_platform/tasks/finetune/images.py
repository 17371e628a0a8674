"""Augmented images of a fine-tune: latents as they are in the shards, or pixels that are encoded at each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...config.commands import command
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.augment.transforms import AugmentLatents, AugmentPixels, evaluation_pixels
from ...data.autoencoder.encoder import Encoder
from ...data.autoencoder.open import open_autoencoder
from ...data.manifest import Manifest
from ...data.read import LATENT, Columns, Transform


def open_images(experiment: Experiment) -> LatentImages | PixelImages:
    """Return the images of a fine-tune by its `augment.mode`."""
    assert experiment.finetune is not None
    mode = experiment.finetune.augment.mode
    return LatentImages(experiment) if mode == "latents" else PixelImages(experiment)


@dataclass(frozen=True)
class LatentImages:
    """Mode `latents`: the latents of the shards, flipped by `data.flip` and partly erased."""

    experiment: Experiment

    def check(self, manifest: Manifest) -> None:
        """Check that the shards have latents of the model. The base of fine-tunes has done so."""

    def transform(self) -> Transform | None:
        """Return the erasing of boxes, or None."""
        finetune = self.experiment.finetune
        assert finetune is not None
        return AugmentLatents(finetune.augment, self.experiment.seed) if finetune.augment.erasing else None

    def evaluation(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, H, W) for evaluation: as they are."""
        return latents

    def encode(self, latents: Tensor, device: torch.device) -> Tensor:
        """Return the model's latents of these: the same."""
        del device
        return latents


@dataclass(frozen=True)
class AugmentRows:
    """Transform of rows: images of shards become augmented pixels."""

    augment: AugmentPixels

    def __call__(self, rows: Columns, positions: range) -> Columns:
        """Replace images (B, 3, H, W) in [−1, 1] by (B, 3, size, size) float32."""
        images = [
            self.augment(to_image(pixels), position)
            for pixels, position in zip(rows[LATENT], positions, strict=True)
        ]
        return rows | {LATENT: np.stack(images)}


@dataclass(frozen=True)
class PixelImages:
    """Mode `pixels`: images are augmented, mixed, and encoded by a frozen autoencoder at each step."""

    experiment: Experiment
    _encoders: dict[str, Encoder] = field(default_factory=dict)

    @cached_property
    def downsampling(self) -> int:
        """Pixels along a side per latent pixel."""
        return self._encoder("cpu").downsampling

    @property
    def size(self) -> int:
        """Side of the augmented images in pixels."""
        return self.experiment.model.input_size * self.downsampling

    def check(self, manifest: Manifest) -> None:
        """Check that the shards hold images in colour, and that the autoencoder suits the model.

        Raises:
            UserError: they do not.
        """
        data = self.experiment.data
        if manifest.autoencoder.name != "identity" or manifest.shape[0] != 3:
            raise UserError(
                f"finetune.augment.mode=pixels reads images in colour, but the shards in {data.path} hold latents "
                f"of {manifest.autoencoder.name} with {manifest.shape[0]} channels\n"
                f"  write images: {command('data', 'encode', 'IMAGES', 'FOLDER', '--vae', 'identity')}; or set "
                f"finetune.augment.mode=latents"
            )
        _ = self.downsampling

    def transform(self) -> Transform:
        """Return crop, flip, RandAugment and erasing."""
        finetune = self.experiment.finetune
        assert finetune is not None
        return AugmentRows(AugmentPixels(finetune.augment, self.size, self.experiment.seed))

    def evaluation(self, images: Tensor) -> Tensor:
        """Return the centres of images (B, 3, H, W), (B, 3, size, size)."""
        pixels = [evaluation_pixels(to_image(image.numpy()), self.size) for image in images]
        return torch.from_numpy(np.stack(pixels))

    def encode(self, images: Tensor, device: torch.device) -> Tensor:
        """Return the mean latents of images in [−1, 1], without gradients, in the model's scale."""
        return self._encoder(str(device)).mean(images)

    def _encoder(self, device: str) -> Encoder:
        finetune, model = self.experiment.finetune, self.experiment.model
        assert finetune is not None
        if device not in self._encoders:
            self._encoders[device] = open_autoencoder(finetune.vae, model.in_channels, device)
        return self._encoders[device]


def to_image(pixels: np.ndarray[Any, Any]) -> Image.Image:
    """Return the image of pixels (3, H, W) in [−1, 1]."""
    levels = np.clip((pixels.astype(np.float32) + 1) * 127.5, 0, 255).round().astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0))

"""Augmentation of rows where they are read: of images to arrays, and of latents. Mixing follows on the device.

Every draw is a pure function of the seed, the row's position in the stream, and its purpose. The order, the workers
and the layout of batches therefore do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...config.augment import AugmentConfig
from ..read import LATENT, Columns
from .crop_flip import cut_and_resize, draw_crop, evaluation_crop, is_mirrored, mirror
from .erasing import draw_box, erase
from .operations import Fill
from .rand_augment import BICUBIC, RANDOM, apply_operations, draw_operations
from .streams import numpy_stream, numpy_streams

FILL: Fill = (124, 116, 104)
"""Mean colour of ImageNet in levels, for places that an operation takes from outside of the image."""
# Mean and standard deviation of ImageNet's channels, for pixels in [−1, 1]. MAE's noise is of this distribution.
_MEAN = 2 * np.array([0.485, 0.456, 0.406], np.float32)[:, None, None] - 1
_STD = 2 * np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


@dataclass(frozen=True)
class AugmentPixels:
    """Crop, flip, RandAugment and erasing of one image, in this order: mode `pixels`."""

    config: AugmentConfig
    size: int
    """Side of the result in pixels."""
    seed: int

    def __call__(self, image: Image.Image, position: int) -> NDArray[np.float32]:
        """Return an RGB image, augmented: (3, size, size) float32.

        Pixels are in [−1, 1], but erased ones are normal noise with the mean and deviation of ImageNet.

        Args:
            image: RGB image of any size.
            position: position of the row in the stream.

        Raises:
            ValueError: the image is not RGB.
        """
        _check_rgb(image)
        config, seed = self.config, self.seed
        box = draw_crop(numpy_stream(seed, "crop", position), image.width, image.height, config.crop_scale)
        image = cut_and_resize(image, box, self.size)
        if is_mirrored(seed, position):
            image = mirror(image)
        if policy := config.policy:
            interpolations = BICUBIC if config.rand_augment_interpolation == "bicubic" else RANDOM
            operations = draw_operations(policy, numpy_stream(seed, "rand augment", position), interpolations)
            image = apply_operations(image, operations, FILL)
        pixels = to_array(image)
        generator = numpy_stream(seed, "erasing", position)
        if erased := draw_box(generator, config.erasing, self.size, self.size):
            erase(pixels, erased, generator, _MEAN, _STD)
        return pixels


@dataclass(frozen=True)
class AugmentLatents:
    """Transform of rows that erases boxes of latents: mode `latents`. The flip is that of `data.flip`."""

    config: AugmentConfig
    seed: int

    def __call__(self, rows: Columns, positions: range) -> Columns:
        """Replace a box of some latents by standard normal noise, in place: (B, C, H, W)."""
        latents = rows[LATENT]
        for latent, generator in zip(latents, numpy_streams(self.seed, "erasing", positions), strict=True):
            if erased := draw_box(generator, self.config.erasing, *latent.shape[1:]):
                erase(latent, erased, generator)
        return rows


def evaluation_pixels(image: Image.Image, size: int) -> NDArray[np.float32]:
    """Return the centre of an RGB image for evaluation: (3, size, size) float32 in [−1, 1]. Nothing is drawn.

    Raises:
        ValueError: the image is not RGB.
    """
    _check_rgb(image)
    return to_array(evaluation_crop(image, size))


def to_array(image: Image.Image) -> NDArray[np.float32]:
    """Map an RGB image to (3, height, width) float32, level x to x / 127.5 − 1."""
    levels = np.asarray(image, np.float32).transpose(2, 0, 1)
    pixels: NDArray[np.float32] = np.ascontiguousarray(levels) / np.float32(127.5) - 1
    return pixels


def _check_rgb(image: Image.Image) -> None:
    if image.mode != "RGB":
        raise ValueError(f"the image has mode {image.mode}; allowed: RGB")

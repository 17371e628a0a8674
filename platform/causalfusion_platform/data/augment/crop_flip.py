"""Random resized crop and flip of training images, and the centre crop of evaluation, as in MAE's fine-tuning."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from causalfusion import draws

from .box import Box

ASPECT = (3 / 4, 4 / 3)
"""Smallest and largest ratio of width to height, which is uniform in its logarithm."""
EVALUATION_RATIO = 256 / 224
"""Shorter side of an image before its centre is cut out, as a multiple of the crop."""
_TRIES = 10


def draw_crop(generator: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> Box:
    """Draw the part of an image to cut out, by area and ratio of sides (Szegedy et al. 2015, Section 6).

    A part that is larger than the image, or rounded to nothing, is drawn again. After ten of them it is the centre,
    as large as the ratios allow.

    Args:
        generator: generator of the draws.
        width: width of the image.
        height: height of the image.
        scale: smallest and largest area, as a share of the image.
    """
    for _ in range(_TRIES):
        area = generator.uniform(*scale) * width * height
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(generator.integers(height - rows, endpoint=True))
            left = int(generator.integers(width - columns, endpoint=True))
            return Box(top, top + rows, left, left + columns)
    return _largest_centre(width, height)


def _largest_centre(width: int, height: int) -> Box:
    smallest, largest = ASPECT
    rows = round(width / smallest) if width / height < smallest else height
    columns = round(height * largest) if width / height > largest else width
    top, left = (height - rows) // 2, (width - columns) // 2
    return Box(top, top + rows, left, left + columns)


def cut_and_resize(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Return a part of an image, resized bicubically to size × size."""
    part = image.crop((box.left, box.top, box.right, box.bottom))
    return part.resize((size, size), Image.Resampling.BICUBIC)


def is_mirrored(seed: int, position: int) -> bool:
    """Return whether the image at a position of the stream is mirrored: the coin that chooses mirrored latents."""
    return draws.sample_seeds(seed, "flip", [position])[0] % 2 == 1


def mirror(image: Image.Image) -> Image.Image:
    """Return the image with left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def evaluation_crop(image: Image.Image, size: int, ratio: float = EVALUATION_RATIO) -> Image.Image:
    """Resize the shorter side to size × ratio bicubically, rounded down, and cut out the centre.

    MAE's program takes a ratio of 256 / 224 for crops of at most 224 pixels, and 1 for larger ones.
    """
    shorter = int(size * ratio)
    scale = shorter / min(image.size)
    width, height = (shorter if side == min(image.size) else int(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))

"""Random erasing (Zhong et al. 2017) with one box of pixel noise, as timm has it and MAE's fine-tuning uses it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .box import Box

AREA = (0.02, 1 / 3)
"""Smallest and largest area of the box, as a share of the image."""
ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest ratio of height to width, which is uniform in its logarithm."""
_TRIES = 10


def draw_box(generator: np.random.Generator, probability: float, height: int, width: int) -> Box | None:
    """Draw the box to erase, or None with 1 − `probability`.

    A box as high or as wide as the image is drawn again. After ten of them nothing is erased. On tiny images a side
    may be rounded to 0.
    """
    if generator.random() >= probability:
        return None
    for _ in range(_TRIES):
        area = generator.uniform(*AREA) * height * width
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows < height and columns < width:
            top = int(generator.integers(height - rows, endpoint=True))
            left = int(generator.integers(width - columns, endpoint=True))
            return Box(top, top + rows, left, left + columns)
    return None


def erase(
    image: NDArray[np.floating],
    box: Box,
    generator: np.random.Generator,
    mean: NDArray[np.float32] | float = 0.0,
    std: NDArray[np.float32] | float = 1.0,
) -> None:
    """Replace a box of an image by normal noise, in place.

    Args:
        image: (C, H, W), any floating type.
        box: the box to erase.
        generator: draws one number for each channel and pixel of the box.
        mean: mean of the noise, a number or (C, 1, 1).
        std: standard deviation of the noise, a number or (C, 1, 1).
    """
    rows, columns = box.slices
    place = image[:, rows, columns]
    place[...] = mean + std * generator.standard_normal(place.shape, np.float32)

"""Centre crop, equal to ADM's bit for bit (Dhariwal & Nichol 2021, `center_crop_arr` of its release)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def enlarged_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return (width, height) scaled so that the shorter side is `size`."""
    scale = size / min(width, height)
    return round(width * scale), round(height * scale)


def center_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Return the centred square of an RGB image, resized to (size, size, 3), uint8.

    Both sides are halved by box averages while the shorter one is at least 2·size. Then the shorter side is resized
    to `size` bicubically, and the middle is cut out. The larger part of an odd margin is right and below.

    Raises:
        ValueError: the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"the image has mode {image.mode}; allowed: RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    image = image.resize(enlarged_size(*image.size, size), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image, dtype=np.uint8)[top : top + size, left : left + size].copy()

"""Samples in a plane, rows × columns of tiles with names: S down and T across, or settings and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Pillow's own font has no ×, γ and →.
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"

Pixels = NDArray[np.uint8]
_INK, _PALE = (30, 30, 30), (225, 225, 225)
_GAP = 2
_BETWEEN = 10


def sample_plane(
    samples: Mapping[tuple[str, str], Pixels], rows: Sequence[str], columns: Sequence[str], *, tile: int = 40
) -> Image.Image:
    """Return images by (name of a row, name of a column). Each place holds its N images in a block.

    Args:
        samples: images (N, height, width, 1 or 3) uint8 of a place. A missing place stays gray.
        rows: names at the left, from above.
        columns: names on top, from the left.
        tile: side of one drawn image in pixels.

    Raises:
        ValueError: an array is of another kind, or of a place that no row and column name.
    """
    for (row, column), images in samples.items():
        if row not in rows or column not in columns:
            raise ValueError(f"there is no place ({row!r}, {column!r})")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(f"({row!r}, {column!r}): {images.dtype} {images.shape}, not uint8 (N, H, W, 1 or 3)")
    most = max((len(images) for images in samples.values()), default=1)
    wide = _wide(most)
    high = math.ceil(most / wide)
    pitch = tile + _GAP
    block = (wide * pitch - _GAP, high * pitch - _GAP)
    font = ImageFont.truetype(_FONT, size=14)
    left = max(math.ceil(font.getlength(name)) for name in rows) + 2 * _BETWEEN
    top = 14 + 2 * _BETWEEN
    size = (left + len(columns) * (block[0] + _BETWEEN), top + len(rows) * (block[1] + _BETWEEN))
    canvas = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    for down, row in enumerate(rows):
        y = top + down * (block[1] + _BETWEEN)
        pen.text((_BETWEEN, y + block[1] / 2), row, fill=_INK, font=font, anchor="lm")
        for across, column in enumerate(columns):
            x = left + across * (block[0] + _BETWEEN)
            if down == 0:
                pen.text((x + block[0] / 2, top / 2), column, fill=_INK, font=font, anchor="mm")
            if (row, column) not in samples:
                pen.rectangle((x, y, x + block[0] - 1, y + block[1] - 1), fill=_PALE)
                continue
            for index, image in enumerate(samples[row, column]):
                place = (x + index % wide * pitch, y + index // wide * pitch)
                canvas.paste(_tile(image, tile), place)
    return canvas


def _wide(count: int) -> int:
    """Return how many tiles stand side by side: full lines and about a square, 5 of 10."""
    least = math.ceil(math.sqrt(count))
    return next((wide for wide in range(least, 2 * least) if count % wide == 0), least)


def _tile(image: Pixels, side: int) -> Image.Image:
    drawn = Image.fromarray(image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1))
    enlarged = max(drawn.size) < side
    return drawn.resize((side, side), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)

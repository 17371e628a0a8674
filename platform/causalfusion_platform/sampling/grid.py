"""Labelled sample grids: one row per class, the class's name at its left."""

from __future__ import annotations

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.pixels import to_pixels

_GAP = 6
_INK = 30
_LONGEST_NAME = 24


def sample_grid(
    images: Tensor, labels: Tensor, class_names: list[str], *, columns: int = 10, cell: int = 48
) -> Image.Image:
    """Draw samples as a grid: a row per class that occurs, up to `columns` samples each, no column empty.

    Args:
        images: (B, channels, height, width) in [−1, 1], with 1 or 3 channels (of more, the first three).
        labels: (B,) classes.
        class_names: the name of each class. Long ones are cut.
        columns: samples per row.
        cell: side of one drawn sample, in pixels. Small images are enlarged without smoothing.
    """
    pixels = to_pixels(images)
    pixels = pixels[:, :1].expand(-1, 3, -1, -1) if pixels.shape[1] < 3 else pixels[:, :3]
    arrays = rearrange(pixels, "b c h w -> b h w c").numpy()
    classes = sorted(set(labels.tolist()))
    columns = min(columns, max(labels.tolist().count(label) for label in classes))
    names = {label: _short(class_names[label]) for label in classes}
    font = ImageFont.load_default(size=max(cell // 3, 10))
    margin = max(int(font.getlength(name)) for name in names.values()) + 3 * _GAP
    pitch = cell + _GAP
    canvas = Image.new("RGB", (margin + columns * pitch, len(classes) * pitch + _GAP), (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    for row, label in enumerate(classes):
        top = _GAP + row * pitch
        pen.text((_GAP, top + cell / 2), names[label], fill=(_INK,) * 3, font=font, anchor="lm")
        for column, index in enumerate(np.flatnonzero(labels.numpy() == label)[:columns]):
            tile = Image.fromarray(arrays[index]).resize((cell, cell), Image.Resampling.NEAREST)
            canvas.paste(tile, (margin + column * pitch, top))
    return canvas


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"

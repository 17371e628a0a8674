"""Pixels of shards whose latents are pixels, with one row group in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .manifest import Manifest
from .passes import latents_of, read_groups

ROWS_AT_ONCE = 64
"""Rows that go through a network together."""


@dataclass(frozen=True)
class PixelRows:
    """Some rows of one row group."""

    row_ids: Tensor
    """(B,) int64"""
    labels: Tensor
    """(B,) int64"""
    images: Tensor
    """(B, channels, height, width) uint8"""


def to_pixels(images: Tensor) -> Tensor:
    """Map images in [−1, 1] to uint8, rounding to nearest: (B, channels, height, width). NaN becomes 0."""
    return ((images.nan_to_num(nan=-1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def read_pixels(folder: Path, manifest: Manifest) -> Iterator[PixelRows]:
    """Yield all rows in the order of the shards, at most `ROWS_AT_ONCE` at a time.

    Raises:
        UserError: a shard is damaged. The message names it.
    """
    for shard in manifest.shards:
        for group in read_groups(folder, shard, ["row_id", "label", "mean"]):
            for start in range(0, group.num_rows, ROWS_AT_ONCE):
                table = group.slice(start, ROWS_AT_ONCE)
                yield PixelRows(
                    row_ids=torch.from_numpy(table.column("row_id").to_numpy().copy()),
                    labels=torch.from_numpy(table.column("label").to_numpy().copy()),
                    images=to_pixels(torch.from_numpy(latents_of(table, "mean").astype(np.float32))),
                )

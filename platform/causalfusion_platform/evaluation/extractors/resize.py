"""The bilinear resizing inside the graph that FID is defined by."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_as_tf1(images: Tensor, size: int) -> Tensor:
    """Resize images (B, C, H, W) float32 to (B, C, size, size) as TensorFlow 1's `ResizeBilinear` does by default.

    Output pixel i lies at i · H / size of the input, without an offset of half a pixel. Shrinking averages over
    two pixels only, for every factor. Both are known faults, and part of FID. The order of the float32 operations
    is TensorFlow's.
    """
    top, bottom, down = _neighbours(images.shape[2], size, images.device)
    left, right, across = _neighbours(images.shape[3], size, images.device)
    upper, lower = images[:, :, top], images[:, :, bottom]
    upper = upper[..., left] + (upper[..., right] - upper[..., left]) * across
    lower = lower[..., left] + (lower[..., right] - lower[..., left]) * across
    return upper + (lower - upper) * down[:, None]


def _neighbours(pixels: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return each output pixel's two input pixels along one axis, and the weight of the second."""
    scale = torch.tensor(pixels / size, dtype=torch.float32, device=device)
    place = torch.arange(size, dtype=torch.float32, device=device) * scale
    first = place.long()
    return first, (first + 1).clamp(max=pixels - 1), place - first

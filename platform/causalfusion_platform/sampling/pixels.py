"""Map images in [−1, 1] to the bytes that are stored and measured."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from ..data.pixels import to_pixels

Uint8Rule = Literal["round", "truncate", "adm"]
Pixels = NDArray[np.uint8]


def to_uint8(images: Tensor, rule: Uint8Rule) -> Pixels:
    """Map images (B, 1 or 3, H, W) in about [−1, 1] to RGB pixels (B, H, W, 3), with gray repeated.

    Args:
        images: output of the autoencoder.
        rule: `round`: 127.5 (x + 1) to the nearest, halves to the even neighbour, as MAR does. `truncate`:
            127.5 x + 128 without its fraction, as DiT and the paper's release do: halves go upwards, the rest is
            the same. `adm`: 127.5 (x + 1) without its fraction, as ADM's sampling script does: half a level darker
            on average.
    """
    match rule:
        case "round":
            pixels = to_pixels(images)
        case "truncate":
            pixels = (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
        case "adm":
            pixels = ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(rearrange(pixels.expand(-1, 3, -1, -1), "b c h w -> b h w c").numpy())

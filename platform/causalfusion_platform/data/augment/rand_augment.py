"""RandAugment (Cubuk et al. 2020) as timm has it: `rand-m9-mstd0.5-inc1` in MAE's fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...config.augment import STRONGEST, RandAugmentPolicy
from .operations import OPERATIONS, Fill, Resampling

_NAMES = tuple(OPERATIONS)
RANDOM: tuple[Resampling, ...] = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
"""Interpolations to draw from."""
BICUBIC: tuple[Resampling, ...] = (Image.Resampling.BICUBIC,)
"""The only interpolation of MAE's program."""


@dataclass(frozen=True)
class DrawnOperation:
    """One operation to apply, with its argument."""

    name: str
    """Key of `OPERATIONS`."""
    argument: float
    resampling: Resampling


def draw_operations(
    policy: RandAugmentPolicy, generator: np.random.Generator, interpolations: Sequence[Resampling] = RANDOM
) -> list[DrawnOperation]:
    """Draw the operations that are applied to one image, at most `policy.layers`.

    Each layer draws an operation uniformly, with replacement, and applies it with `policy.probability`. The
    magnitude is normal with the policy's mean and deviation, cut to 0 … 10. Directions are fair coins.
    """
    drawn = []
    for name in generator.choice(_NAMES, policy.layers):
        # Every layer takes the same draws, so that a change of one probability leaves the others as they are.
        applied = generator.random() < policy.probability
        magnitude = min(max(generator.normal(policy.magnitude, policy.magnitude_std), 0.0), STRONGEST)
        sign = -1 if generator.random() < 0.5 else 1
        resampling = interpolations[int(generator.integers(len(interpolations)))]
        if applied:
            argument = OPERATIONS[name].argument(magnitude / STRONGEST, sign)
            drawn.append(DrawnOperation(str(name), argument, resampling))
    return drawn


def apply_operations(image: Image.Image, operations: Sequence[DrawnOperation], fill: Fill) -> Image.Image:
    """Return an RGB image after all operations, in order. `fill` is the colour of places outside of the image."""
    for drawn in operations:
        image = OPERATIONS[drawn.name].apply(image, drawn.argument, fill, drawn.resampling)
    return image

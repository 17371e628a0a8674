"""Mixup (Zhang et al. 2017), CutMix (Yun et al. 2019) and label smoothing, as in timm's mode `batch`.

Rows 2k and 2k + 1 of the stream of rows are partners. In timm they are rows i and B − 1 − i of each device's batch,
which depend on the number of devices. Rows are shuffled, so that both choices have the same law. All draws are of
the step, and all workers make the same. The result is the same for any number of workers, and for micro-batches of
any even number of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...config.augment import AugmentConfig
from .box import Box
from .streams import numpy_stream


@dataclass(frozen=True)
class MixDraw:
    """Draws of one step."""

    weight: float
    """λ, the weight of a row's own image and target. CutMix: the share of the area outside of the box."""
    box: Box | None
    """Box that a row takes from its partner. None: mixup."""


def draw_mixing(config: AugmentConfig, seed: int, step: int, height: int, width: int) -> MixDraw | None:
    """Draw how a step mixes its rows, the same on all workers.

    Args:
        config: with the parameters of mixup and CutMix.
        seed: seed of the experiment.
        step: number of the optimizer step, counted from 0.
        height: height of the images or latents that are mixed.
        width: their width.

    Returns:
        None: neither mixup nor CutMix is on.
    """
    if not config.mixes:
        return None
    generator = numpy_stream(seed, "mixing", step)
    switched = generator.random() < config.switch
    if config.cutmix > 0 and (switched or not config.mixup):
        return cut(height, width, generator.beta(config.cutmix, config.cutmix), generator)
    return MixDraw(float(generator.beta(config.mixup, config.mixup)), None)


def cut(height: int, width: int, weight: float, generator: np.random.Generator) -> MixDraw:
    """Draw the centre of a CutMix box, and correct λ to the area that the box has inside of the image.

    Args:
        height: height of the images.
        width: width of the images.
        weight: λ before. The box has the sides of the image times √(1 − λ), rounded down to even numbers.
        generator: generator of the centre, uniform over the image.
    """
    ratio = math.sqrt(1 - weight)
    half_height, half_width = int(height * ratio) // 2, int(width * ratio) // 2
    y, x = int(generator.integers(height)), int(generator.integers(width))
    box = Box(
        max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)
    )
    return MixDraw(1 - box.area / (height * width), box)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return targets that sum to 1: 1 − smoothing at the label, and smoothing / num_classes more at every class.

    Args:
        labels: (B,) int64, 0 … num_classes − 1.
        num_classes: number of classes K.
        smoothing: share that is spread over all classes.

    Returns:
        (B, K) float32
    """
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + off)


def mix(images: Tensor, targets: Tensor, drawn: MixDraw | None) -> tuple[Tensor, Tensor]:
    """Mix each row with its partner: rows 0 and 1, rows 2 and 3, and so on.

    Args:
        images: (B, C, H, W) images or latents, whose first row is at an even position in the stream of rows.
        targets: (B, K), as `soft_targets` returns them.
        drawn: draws of the step. None: nothing is mixed.

    Returns:
        Both, mixed with λ. The arguments are not changed.

    Raises:
        ValueError: the number of rows is odd.
    """
    if drawn is None:
        return images, targets
    if len(images) % 2:
        raise ValueError(f"mixup and CutMix need an even number of rows, got {len(images)}")
    partners = _partners(images)
    if drawn.box is None:
        mixed = images * drawn.weight + partners * (1 - drawn.weight)
    else:
        rows, columns = drawn.box.slices
        mixed = images.clone()
        mixed[:, :, rows, columns] = partners[:, :, rows, columns]
    return mixed, targets * drawn.weight + _partners(targets) * (1 - drawn.weight)


def _partners(rows: Tensor) -> Tensor:
    return rows.reshape(-1, 2, *rows.shape[1:]).flip(1).reshape(rows.shape)

"""Protocol of networks that turn images into features, and the names of feature spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Outputs of a network for a batch of B images, on the extractor's device, float32."""

    pool: Tensor
    """(B, F), one vector an image, for Fréchet distance, precision, recall and nearest neighbours."""
    spatial: Tensor | None = None
    """(B, G), a flattened feature map with spatial positions."""
    probabilities: Tensor | None = None
    """(B, C), of the network's own classes. Every row sums to 1."""


class Extractor(Protocol):
    """A network with weights that never change, and the name of its feature space.

    Your own module may define one. `open_extractor` describes its name.
    """

    space: str
    """Name of the feature space, part of the metrics' names: lower-case letters, digits and underscores.

    `inception_2015_12_05` is the space of FID, and only of the released weights.
    """
    digest: str
    """SHA-256 of the weights, in hexadecimal. Only numbers with the same digest are comparable."""
    device: torch.device
    """Device of the computation."""
    judges_classes: bool
    """True if `probabilities` are of the data set's own classes, in their order."""

    def features(self, images: Tensor) -> Features:
        """Map images (B, C, H, W) uint8, on any device, to features.

        An image's features do not depend on what else is in the batch.

        Raises:
            ValueError: the images are of another type or shape than the network takes.
        """


def check_images(images: Tensor, channels: tuple[int, ...]) -> None:
    """Raise `ValueError` unless images are (B, C, H, W) uint8 with one of these numbers of channels."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in channels:
        allowed = " or ".join(map(str, channels))
        raise ValueError(
            f"images must be (B, {allowed}, H, W) torch.uint8, got {tuple(images.shape)} {images.dtype}"
        )

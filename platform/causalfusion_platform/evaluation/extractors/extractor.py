"""What turns images into features, and the space that the features live in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What a network says of a batch of B images; on the extractor's device, float32."""

    pool: Tensor
    """(B, F), one vector an image: Fréchet distance, precision, recall and nearest neighbours are of these."""
    spatial: Tensor | None = None
    """(B, G), a map of features laid out in a row, which still knows where things are."""
    probabilities: Tensor | None = None
    """(B, C), of the network's own classes; every row sums to 1."""


class Extractor(Protocol):
    """A network with weights that never change, and the name of its feature space.

    A module of your own may hold one; `open_extractor` says how it is found.
    """

    space: str
    """Name of the feature space, part of the metrics' names: lower-case letters, digits and underscores.

    `inception_2015_12_05` is the space of FID, and only of the released weights.
    """
    digest: str
    """SHA-256 of the weights, in hexadecimal: numbers are compared only where it is the same."""
    device: torch.device
    """Where the features are computed."""
    judges_classes: bool
    """Whether `probabilities` are of the data set's own classes, in their order."""

    def features(self, images: Tensor) -> Features:
        """Map images (B, C, H, W) uint8, on any device, to features.

        An image's features do not depend on what else is in the batch.

        Raises:
            ValueError: the images are of another type or shape than the network takes.
        """


def check_images(images: Tensor, channels: tuple[int, ...]) -> None:
    """Check that images are (B, C, H, W) uint8 with one of these numbers of channels.

    Raises:
        ValueError: they are not.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in channels:
        allowed = " or ".join(map(str, channels))
        raise ValueError(
            f"images must be (B, {allowed}, H, W) torch.uint8, got {tuple(images.shape)} {images.dtype}"
        )

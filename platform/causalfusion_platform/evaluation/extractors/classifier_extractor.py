"""The classifier of a data set as an extractor: space `digits_cnn` of the bundled digits, or `data_cnn`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.autoencoder.encoder import hash_weights
from ...data.manifest import Manifest
from .extractor import Extractor, Features, check_images
from .small_cnn import SmallCnn

DIGITS_SPACE = "digits_cnn"
DATA_SPACE = "data_cnn"
SPACES = (DIGITS_SPACE, DATA_SPACE)


def space_of(manifest: Manifest) -> str:
    """Return the name of the feature space of a data set's own classifier."""
    return DIGITS_SPACE if manifest.source.kind == "bundled" else DATA_SPACE


class ClassifierExtractor(Extractor):
    """A classifier trained on the data set's own images, from which it also takes the features."""

    judges_classes = True

    def __init__(self, network: SmallCnn, space: str) -> None:
        """Use a trained network on its own device."""
        self.network = network.eval().requires_grad_(False)
        self.space = space
        self.device = next(network.parameters()).device
        self.digest = hash_weights(network.state_dict())

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Map images (B, channels, H, W) uint8, pixel x as x / 127.5 − 1, to pool (B, F) and probabilities.

        Grey images may come with three equal channels, as files in ADM's layout hold them.

        Raises:
            ValueError: images are of another type or shape.
        """
        channels = self.network.channels
        check_images(images, (channels, 3) if channels == 1 else (channels,))
        pool = self.network.features(images[:, :channels].to(self.device).float() / 127.5 - 1)
        scores: Tensor = self.network.head(pool)
        return Features(pool, probabilities=scores.double().softmax(dim=1).float())

"""The classifier of digits as an extractor: the space `digits_cnn`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.autoencoder.encoder import hash_weights
from .digits_cnn import DigitsClassifier
from .extractor import Extractor, Features, check_images


class DigitsExtractor(Extractor):
    """A classifier trained on the data set's own images, from which it also takes the features."""

    space = "digits_cnn"
    judges_classes = True

    def __init__(self, classifier: DigitsClassifier) -> None:
        """Use a trained classifier on its own device."""
        first = next(classifier.network.parameters())
        self.classifier = classifier
        self.device = first.device
        self.digest = hash_weights(classifier.network.state_dict())

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Map images (B, channels, H, W) uint8, pixel x as x / 127.5 − 1, to pool (B, 64) and probabilities.

        Grey images may come with three equal channels, as files in ADM's layout hold them.

        Raises:
            ValueError: images are of another type or shape.
        """
        network = self.classifier.network
        check_images(images, (network.channels, 3) if network.channels == 1 else (network.channels,))
        images = images[:, : network.channels]
        pool = network.features(images.to(self.device).float() / 127.5 - 1)
        scores: Tensor = network.head(pool)
        return Features(pool, probabilities=scores.double().softmax(dim=1).float())

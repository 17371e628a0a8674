"""Score generated samples against the real data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion import draws

from .extractors.digits_cnn import train_classifier
from .metrics.frechet import frechet_distance


@dataclass(frozen=True)
class Scores:
    """Scores of generated samples. Every name contains its feature space."""

    class_accuracy: float
    """Share of generated samples that the classifier assigns to their requested class."""
    judge_accuracy: float
    """Accuracy of the classifier on held-out real images, the ceiling of `class_accuracy`."""
    fd_digits_cnn: float
    """Fréchet distance between generated and all real images, in the 64 features of the classifier."""
    fd_digits_cnn_real: float
    """The same for as many real images drawn at random, the score of a perfect generator."""


class SampleScorer:
    """Score sets of generated images by a classifier trained on the real ones, and by its features."""

    def __init__(self, real: Tensor, labels: Tensor, *, num_classes: int, epochs: int, seed: int) -> None:
        """Train the classifier.

        Args:
            real: all real images (N, channels, size, size) in [−1, 1].
            labels: their classes (N,).
            num_classes: classes in the data set.
            epochs: training epochs of the classifier.
            seed: decides the classifier and the real subset.
        """
        self.classifier = train_classifier(real, labels, num_classes=num_classes, epochs=epochs, seed=seed)
        self.of_real = self.classifier.features(real)
        self.seed = seed

    def score(self, generated: Tensor, asked: Tensor) -> Scores:
        """Score generated images (B, channels, size, size) of the requested classes `asked` (B,).

        They are clamped to [−1, 1] first, as in drawings.
        """
        generated = generated.clamp(-1, 1)
        subset = torch.randperm(len(self.of_real), generator=draws.stream(self.seed, "real subset"))
        some = self.of_real[subset[: len(generated)]]
        return Scores(
            class_accuracy=self.classifier.accuracy(generated, asked),
            judge_accuracy=self.classifier.held_out_accuracy,
            fd_digits_cnn=frechet_distance(self.classifier.features(generated), self.of_real),
            fd_digits_cnn_real=frechet_distance(some, self.of_real),
        )

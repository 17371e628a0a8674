"""A small CNN that tells the classes of a data set apart. Its features are a named space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class SmallCnn(nn.Module):
    """Two convolutions and a layer of features.

    Args:
        shape: channels, height and width of an image.
        num_classes: classes of the data set.
        channels: outputs of the two convolutions.
        width: number of features.
        dropout: share of the numbers that training drops before the layer of features.
    """

    def __init__(
        self, shape: Sequence[int], num_classes: int, *, channels: Sequence[int], width: int, dropout: float
    ) -> None:
        super().__init__()
        self.channels, height, across = shape
        first, second = channels
        self.body = nn.Sequential(
            nn.Conv2d(self.channels, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(second * (height // 2) * (across // 2), width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Map images (B, channels, height, width) in [−1, 1] to features (B, width)."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores (B, classes)."""
        scores: Tensor = self.head(self.features(images))
        return scores

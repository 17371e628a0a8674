"""A small CNN trained on the real images. It scores generated images, and its features are a named space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from causalfusion import draws


class DigitsCnn(nn.Module):
    """Two convolutions and a 64-feature layer. `features` is the space of `fd_digits_cnn`."""

    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * (size // 2) ** 2, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Map images (B, channels, size, size) in [−1, 1] to features (B, 64)."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores (B, classes)."""
        scores: Tensor = self.head(self.features(images))
        return scores


@contextmanager
def _one_thread() -> Iterator[None]:
    # With batches this small threads mostly wait for one another. One is faster, above all on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class DigitsClassifier:
    """A trained classifier and its own accuracy."""

    network: DigitsCnn
    held_out_accuracy: float
    """Accuracy on the fifth of the real images that it did not learn from."""

    @torch.inference_mode()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images (B, …) that it assigns to their labels (B,)."""
        return float((self.network(images).argmax(dim=1) == labels).double().mean())

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return features (B, 64), float64."""
        return self.network.features(images).double()


def train_classifier(
    images: Tensor, labels: Tensor, *, num_classes: int, epochs: int, seed: int
) -> DigitsClassifier:
    """Train the classifier on four fifths of the real images, chosen at random. Deterministic in `seed`.

    Args:
        images: (N, channels, size, size) in [−1, 1].
        labels: (N,)
        num_classes: classes in the data set.
        epochs: passes over the training images.
        seed: decides the split, the initial weights and the order.
    """
    order = torch.randperm(len(labels), generator=draws.stream(seed, "judge split"))
    held_out, training = order[: len(order) // 5], order[len(order) // 5 :]
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(draws.stream_seed(seed, "judge"))
        network = DigitsCnn(images.shape[1], images.shape[2], num_classes)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.split(training[torch.randperm(len(training))], 64):
                loss = functional.cross_entropy(network(images[rows]), labels[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
    network.eval()
    classifier = DigitsClassifier(network, 0.0)
    return DigitsClassifier(network, classifier.accuracy(images[held_out], labels[held_out]))

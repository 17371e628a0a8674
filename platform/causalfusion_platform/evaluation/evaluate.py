"""Judge generated samples against the real data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion import draws

from .digits_cnn import train_judge
from .frechet import frechet_distance


@dataclass(frozen=True)
class Scores:
    """What was measured; every name says the space it lives in."""

    class_accuracy: float
    """Share of generated samples that the judge takes for the class they were asked for."""
    judge_accuracy: float
    """The judge's accuracy on real images it has not seen: the ceiling of `class_accuracy`."""
    fd_digits_cnn: float
    """Fréchet distance between generated and all real images, in the judge's 64 features."""
    fd_digits_cnn_real: float
    """The same for as many real images drawn at random: what a perfect generator would score."""


def evaluate_images(
    generated: Tensor,
    asked: Tensor,
    real: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    epochs: int,
    seed: int,
) -> Scores:
    """Score generated images (B, channels, size, size) in [−1, 1] asked to be of classes `asked` (B,).

    Args:
        generated: generated images; clamped to [−1, 1] first, as they are when drawn.
        asked: classes that they were generated for.
        real: all real images (N, channels, size, size).
        labels: classes of the real images (N,).
        num_classes: classes in the data set.
        epochs: training epochs of the judge.
        seed: decides the judge and the real subset.
    """
    judge = train_judge(real, labels, num_classes=num_classes, epochs=epochs, seed=seed)
    generated = generated.clamp(-1, 1)
    of_real = judge.features(real)
    some = torch.randperm(len(real), generator=draws.stream(seed, "real subset"))[: len(generated)]
    return Scores(
        class_accuracy=judge.accuracy(generated, asked),
        judge_accuracy=judge.held_out_accuracy,
        fd_digits_cnn=frechet_distance(judge.features(generated), of_real),
        fd_digits_cnn_real=frechet_distance(of_real[some], of_real),
    )

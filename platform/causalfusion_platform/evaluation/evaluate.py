"""Score generated samples by the classifier of their data set."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import Tensor

from .classifier.train import DataClassifier
from .collect import batches_of, collect
from .metrics.frechet import frechet_of_statistics
from .metrics.statistics import FeatureMoments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Scores of generated samples. The names of the distances contain their feature space."""

    space: str
    """Name of the feature space."""
    class_accuracy: float
    """Share of generated samples that the classifier assigns to their requested class."""
    judge_accuracy: float | None
    """Accuracy of the classifier on held-out real images, the ceiling of `class_accuracy`. None: there are none."""
    distance: float
    """Fréchet distance between generated images and the reference, in the features of the classifier."""
    distance_real: float | None
    """The same for as many real images outside the reference: the score of a perfect generator.

    None: fewer real images are outside the reference.
    """

    @property
    def by_name(self) -> dict[str, float | None]:
        """The scores by their names in records, such as `fd_digits_cnn`."""
        values = (self.class_accuracy, self.judge_accuracy, self.distance, self.distance_real)
        return dict(zip(score_names(self.space), values, strict=True))


def score_names(space: str) -> tuple[str, str, str, str]:
    """Return the names of the scores in a feature space."""
    return "class_accuracy", "judge_accuracy", f"fd_{space}", f"fd_{space}_real"


class SampleScorer:
    """Score sets of generated images by the classifier of the data set, and by its features."""

    def __init__(self, classifier: DataClassifier) -> None:
        """Use a classifier."""
        self.classifier = classifier
        self.real: dict[int, float | None] = {}

    def score(self, images: Tensor, asked: Tensor) -> Scores:
        """Score generated images (B, channels, height, width) uint8 of the requested classes `asked` (B,)."""
        extractor = self.classifier.extractor
        found = collect(extractor, batches_of(images))
        assert found.probabilities is not None
        if len(images) not in self.real:
            self.real[len(images)] = self._distance_real(len(images))
        return Scores(
            space=extractor.space,
            class_accuracy=float((found.probabilities.argmax(dim=1) == asked).double().mean()),
            judge_accuracy=self.classifier.held_out_accuracy,
            distance=frechet_of_statistics(found.pool.statistics(), self.classifier.reference),
            distance_real=self.real[len(images)],
        )

    def _distance_real(self, count: int) -> float | None:
        held_out = self.classifier.held_out
        if len(held_out) < count:
            logger.info(
                f"no score of real images beside that of {count} samples: {len(held_out)} real images are outside "
                f"the reference"
            )
            return None
        moments = FeatureMoments(held_out.shape[1])
        moments.add(held_out[:count])
        return frechet_of_statistics(moments.statistics(), self.classifier.reference)

"""Scores of generated images: real ones pass for real, noise does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from causalfusion_platform.evaluation import evaluate
from causalfusion_platform.evaluation.evaluate import SampleScorer, Scores
from causalfusion_platform.evaluation.extractors.digits_cnn import DigitsClassifier, train_classifier
from causalfusion_platform.evaluation.metrics.frechet import frechet_distance

Digits = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def classifier(digit_images: Digits) -> DigitsClassifier:
    """Return a classifier trained once for the tests of this file."""
    return train_classifier(*digit_images, num_classes=10, epochs=4, seed=0)


@pytest.fixture
def known_classifier(classifier: DigitsClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `SampleScorer` take that classifier in place of one of its own."""
    monkeypatch.setattr(evaluate, "train_classifier", lambda *_, **__: classifier)


def scores_of(images: Tensor, asked: Tensor, real: Digits) -> Scores:
    return SampleScorer(*real, num_classes=10, epochs=4, seed=0).score(images, asked)


@pytest.mark.usefixtures("known_classifier")
def test_real_images_pass_for_real(digit_images: Digits, classifier: DigitsClassifier) -> None:
    """Those that the classifier has seen score no worse than those it has not, up to chance."""
    images, labels = digit_images
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[:300]
    scores = scores_of(images[some], labels[some], digit_images)
    assert scores.judge_accuracy == classifier.held_out_accuracy
    assert scores.class_accuracy == pytest.approx(scores.judge_accuracy, abs=0.04)
    noise = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    of_noise = scores_of(noise, labels[some], digit_images)
    assert of_noise.class_accuracy < 0.3
    assert scores.fd_digits_cnn < of_noise.fd_digits_cnn / 20
    # Two draws of 300 real images are about as far from all of them.
    assert 0.2 < scores.fd_digits_cnn / scores.fd_digits_cnn_real < 5
    assert scores.fd_digits_cnn_real == of_noise.fd_digits_cnn_real


@pytest.mark.usefixtures("known_classifier")
def test_all_real_images_are_at_distance_zero(digit_images: Digits, classifier: DigitsClassifier) -> None:
    scores = scores_of(*digit_images, digit_images)
    scale = float(classifier.features(digit_images[0]).var(dim=0).sum())
    assert scores.fd_digits_cnn == pytest.approx(0, abs=1e-12 * scale)
    assert scores.class_accuracy == classifier.accuracy(*digit_images)


@pytest.mark.usefixtures("known_classifier")
def test_wrong_classes_cost_accuracy_and_no_distance(digit_images: Digits) -> None:
    images, labels = digit_images[0][:200], digit_images[1][:200]
    right, wrong = scores_of(images, labels, digit_images), scores_of(images, (labels + 1) % 10, digit_images)
    assert wrong.fd_digits_cnn == right.fd_digits_cnn
    assert right.class_accuracy + wrong.class_accuracy <= 1


@pytest.mark.usefixtures("known_classifier")
def test_one_class_alone_is_far_from_all(digit_images: Digits) -> None:
    images, labels = digit_images
    mixed, threes = slice(0, 150), labels == 3
    alone = scores_of(images[threes][:150], labels[threes][:150], digit_images)
    assert alone.fd_digits_cnn > 5 * scores_of(images[mixed], labels[mixed], digit_images).fd_digits_cnn


@pytest.mark.usefixtures("known_classifier")
def test_images_are_scored_as_they_are_drawn(digit_images: Digits) -> None:
    """Values beyond [−1, 1] are drawn as black or white."""
    images, labels = digit_images[0][:100], digit_images[1][:100]
    beyond = torch.where(images == 1, 7.0, torch.where(images == -1, -3.0, images))
    assert not torch.equal(beyond, images)
    assert scores_of(beyond, labels, digit_images) == scores_of(images, labels, digit_images)


def test_the_classifier_is_trained_on_the_real_images(digit_images: Digits) -> None:
    real = digit_images[0][:400], digit_images[1][:400]
    generated, asked = digit_images[0][400:500], digit_images[1][400:500]
    scores = SampleScorer(*real, num_classes=10, epochs=2, seed=4).score(generated, asked)
    classifier = train_classifier(*real, num_classes=10, epochs=2, seed=4)
    assert scores.judge_accuracy == classifier.held_out_accuracy
    assert scores.class_accuracy == classifier.accuracy(generated, asked)
    assert scores.fd_digits_cnn == frechet_distance(classifier.features(generated), classifier.features(real[0]))

"""Scores of generated images: real ones pass for real, noise does not, and real ones are scored from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.pixels import to_pixels
from causalfusion_platform.evaluation.classifier.folder import open_classifier
from causalfusion_platform.evaluation.classifier.recipe import RECIPE
from causalfusion_platform.evaluation.classifier.train import DataClassifier
from causalfusion_platform.evaluation.evaluate import SampleScorer
from causalfusion_platform.evaluation.identity import classifiers_of, describe_classifiers
from causalfusion_platform.evaluation.metrics.frechet import frechet_distance

Digits = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def classifier(digits_folder: Path) -> DataClassifier:
    """Return the classifier of the digits."""
    return open_classifier(digits_folder, Manifest.read(digits_folder))


@pytest.fixture(scope="module")
def scorer(classifier: DataClassifier) -> SampleScorer:
    return SampleScorer(classifier)


@pytest.fixture(scope="module")
def real(digit_images: Digits) -> Digits:
    """Return the digits as bytes."""
    return to_pixels(digit_images[0]), digit_images[1]


def test_real_images_pass_for_real(real: Digits, scorer: SampleScorer) -> None:
    """Those that the classifier has seen score no worse than those it has not, up to chance."""
    images, labels = real
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[:300]
    scores = scorer.score(images[some], labels[some])
    assert scores.judge_accuracy == scorer.classifier.held_out_accuracy
    assert scores.class_accuracy == pytest.approx(scores.judge_accuracy, abs=0.04)
    noise = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    of_noise = scorer.score(noise, labels[some])
    assert of_noise.class_accuracy < 0.3
    assert scores.distance < of_noise.distance / 20
    assert scores.distance_real is not None
    # Two draws of 300 real images are about as far from all of them.
    assert 0.2 < scores.distance / scores.distance_real < 5
    assert scores.distance_real == of_noise.distance_real


def test_the_score_of_real_images_is_of_images_outside_the_reference(real: Digits, scorer: SampleScorer) -> None:
    """All of them are as far from the reference as features in float64 say, and the reference itself is at zero."""
    images, labels = real
    outside = RECIPE.is_held_out(range(len(labels)))
    extractor = scorer.classifier.extractor
    features = extractor.features(images).pool.double()
    exact = frechet_distance(features[outside], features[~outside])
    count = int(outside.sum())
    found = scorer.score(images[:count], labels[:count]).distance_real
    assert found == pytest.approx(exact, rel=1e-5)
    assert exact > 0.1
    within = scorer.score(images[~outside], labels[~outside])
    assert within.distance == pytest.approx(0, abs=1e-5)


def test_too_few_real_images_are_not_scored_and_it_is_said(
    real: Digits, scorer: SampleScorer, log_lines: list[str]
) -> None:
    count = len(scorer.classifier.held_out) + 1
    for _ in range(2):
        scores = scorer.score(real[0][:count], real[1][:count])
        assert scores.distance_real is None
        assert scores.by_name["fd_digits_cnn_real"] is None
    (line,) = log_lines
    assert f"beside that of {count} samples: {count - 1} real images are outside the reference" in line


def test_wrong_classes_cost_accuracy_and_no_distance(real: Digits, scorer: SampleScorer) -> None:
    images, labels = real[0][:200], real[1][:200]
    right, wrong = scorer.score(images, labels), scorer.score(images, (labels + 1) % 10)
    assert wrong.distance == right.distance
    assert right.class_accuracy + wrong.class_accuracy <= 1


def test_one_class_alone_is_far_from_all(real: Digits, scorer: SampleScorer) -> None:
    images, labels = real
    threes = labels == 3
    alone = scorer.score(images[threes][:150], labels[threes][:150])
    assert alone.distance > 5 * scorer.score(images[:150], labels[:150]).distance


# Scores of two classifiers


def test_scores_are_told_apart_by_their_classifier() -> None:
    one, other = {"class_accuracy": 0.9, "classifier_sha256": "a" * 64}, {"fd_data_cnn": 3.0}
    nothing = {"class_accuracy": None, "classifier_sha256": None, "images_per_second": 4.0}
    found = classifiers_of({"one": one, "again": one, "old": other, "unscored": nothing})
    assert found == {"a" * 64: ["one", "again"], None: ["old"]}
    assert describe_classifiers(found) == (
        "  aaaaaaaaaaaa…: one, again\n  an unknown one (an earlier version recorded none): old"
    )

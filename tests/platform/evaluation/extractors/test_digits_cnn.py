"""The classifier: good on digits it has not seen, and a function of its seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from causalfusion import draws
from causalfusion_platform.evaluation.extractors.digits_cnn import DigitsClassifier, train_classifier

Digits = tuple[Tensor, Tensor]


def weights_of(classifier: DigitsClassifier) -> list[Tensor]:
    return list(classifier.network.state_dict().values())


def same(one: DigitsClassifier, other: DigitsClassifier) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights_of(one), weights_of(other), strict=True))


def test_it_learns_digits(digit_images: Digits) -> None:
    images, labels = digit_images
    classifier = train_classifier(images, labels, num_classes=10, epochs=4, seed=0)
    assert classifier.held_out_accuracy > 0.9
    assert classifier.accuracy(images, labels) > 0.9
    assert classifier.accuracy(images, (labels + 1) % 10) < 0.1
    assert not classifier.network.training


def test_it_is_a_function_of_its_seed(digit_images: Digits) -> None:
    images, labels = digit_images[0][:300], digit_images[1][:300]
    one = train_classifier(images, labels, num_classes=10, epochs=1, seed=1)
    torch.manual_seed(123)
    again = train_classifier(images, labels, num_classes=10, epochs=1, seed=1)
    other = train_classifier(images, labels, num_classes=10, epochs=1, seed=2)
    assert same(one, again)
    assert one.held_out_accuracy == again.held_out_accuracy
    assert not same(one, other)


def test_it_leaves_torchs_own_draws_alone(digit_images: Digits) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_classifier(digit_images[0][:50], digit_images[1][:50], num_classes=10, epochs=1, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_it_does_not_learn_from_the_images_held_out(digit_images: Digits) -> None:
    """Wrong labels on those alone change its accuracy on them, and none of its weights."""
    images, labels = digit_images[0][:500], digit_images[1][:500]
    held_out = torch.randperm(500, generator=draws.stream(3, "judge split"))[:100]
    wrong = labels.clone()
    wrong[held_out] = (wrong[held_out] + 1) % 10
    right, misled = (train_classifier(images, y, num_classes=10, epochs=2, seed=3) for y in (labels, wrong))
    assert same(right, misled)
    assert right.held_out_accuracy == right.accuracy(images[held_out], labels[held_out])
    assert right.held_out_accuracy + misled.held_out_accuracy <= 1
    assert right.held_out_accuracy > 0.5


def test_scores_are_those_of_the_features(digit_images: Digits) -> None:
    images, labels = digit_images[0][:100], digit_images[1][:100]
    classifier = train_classifier(images, labels, num_classes=10, epochs=1, seed=0)
    features = classifier.features(images)
    assert (features.shape, features.dtype) == ((100, 64), torch.float64)
    assert float(features.min()) == 0.0  # the last layer of the body is a ReLU
    head = classifier.network.head
    scores = features @ head.weight.detach().double().T + head.bias.detach().double()
    expected = sum(int(row.argmax()) == int(label) for row, label in zip(scores, labels, strict=True)) / 100
    assert classifier.accuracy(images, labels) == pytest.approx(expected, abs=1e-12)


def test_other_images_fit_too() -> None:
    """Colours, another size and other classes: 12×12 images of three plain colours are told apart."""
    labels = torch.arange(90) % 3
    images = torch.full((90, 3, 12, 12), -1.0)
    images[torch.arange(90), labels] = 1.0
    classifier = train_classifier(images, labels, num_classes=3, epochs=6, seed=0)
    assert classifier.held_out_accuracy == 1.0

"""Labels of a sample set: in turn, or by chance with every class alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.sampling.labels import asked_labels, parse_classes


def test_balanced_labels_are_the_classes_in_turn() -> None:
    assert asked_labels("balanced", 7, range(3), 0).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert asked_labels("balanced", 5, (7, 2), 9).tolist() == [7, 2, 7, 2, 7]
    labels = asked_labels("balanced", 50_000, range(1000), 0)
    assert labels.dtype == torch.int64
    assert torch.bincount(labels).tolist() == [50] * 1000


def test_random_labels_come_from_the_seed() -> None:
    one, again, other = (asked_labels("random", 1000, range(10), seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert 0.8 < float((one != other).double().mean()) < 0.98  # one in ten is equal by chance
    assert torch.equal(
        asked_labels("random", 300, range(10), 3), one[:300]
    )  # a longer set begins with a shorter one


def test_random_labels_are_uniform_and_independent() -> None:
    """χ² of the classes, and of pairs of neighbours, within five standard deviations of its mean."""
    count, classes = 200_000, (2, 3, 5, 7, 11)
    labels = asked_labels("random", count, classes, 0).numpy()
    assert set(labels.tolist()) == set(classes)
    places = np.searchsorted(classes, labels)
    for cells, found in ((5, places), (25, places[:-1:2] * 5 + places[1::2])):
        expected = len(found) / cells
        chi2 = float(((np.bincount(found, minlength=cells) - expected) ** 2 / expected).sum())
        assert abs(chi2 - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5


def test_classes_are_those_of_the_model() -> None:
    assert parse_classes("0-3,8,2", 10) == [0, 1, 2, 3, 8]
    with pytest.raises(UserError, match="labels '0-3': the model's classes are 0…2"):
        parse_classes("0-3", 3)

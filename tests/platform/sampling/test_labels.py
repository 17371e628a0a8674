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


NAMES = ["cat", "dog", "tench, Tinca tinca", "t-shirt", "crane", "crane", "7", "Ärmel"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat,dog", [0, 1]),
        ("dog, cat,dog", [1, 0]),
        ("tench, Tinca tinca", [2]),
        ("dog,tench, Tinca tinca,0-1,t-shirt", [1, 2, 0, 3]),
        ("7", [7]),  # a number is the number of a class
        ("Ärmel,6", [7, 6]),
    ],
)
def test_classes_have_names(text: str, expected: list[int]) -> None:
    assert parse_classes(text, 8, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cat,dgo", ["'dgo' is neither a number, such as 3 or 0-9, nor the name of a class; did you mean 'dog'?"]),
        ("zzz", ["'zzz' is neither", "classes: 0 cat, 1 dog, 2 tench, Tinca tinca, 3 t-shirt, 4 crane"]),
        ("tench", ["'tench' is neither"]),
        ("crane", ["'crane' is the name of classes 4 and 5", "give a number"]),
        ("8", ["the model's classes are 0…7"]),
        ("", ["'' is neither"]),
    ],
)
def test_names_that_no_class_has(text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_classes(text, 8, NAMES)
    for part in [f"labels {text!r}: ", *parts]:
        assert part in str(caught.value)


def test_a_message_lists_a_few_of_many_classes() -> None:
    with pytest.raises(UserError) as caught:
        parse_classes("none", 1000, [f"class {number}" for number in range(1000)])
    assert str(caught.value).endswith("8 class 8, 9 class 9, … 999 class 999")

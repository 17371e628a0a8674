"""The draws of RandAugment against their laws in closed form, and their application one after another."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from tests.platform.data.pictures import photo

from causalfusion_platform.config.augment import RandAugmentPolicy, parse_rand_augment
from causalfusion_platform.data.augment.operations import OPERATIONS
from causalfusion_platform.data.augment.rand_augment import (
    BICUBIC,
    RANDOM,
    DrawnOperation,
    apply_operations,
    draw_operations,
)
from causalfusion_platform.data.augment.streams import numpy_streams

MAE = parse_rand_augment("rand-m9-mstd0.5-inc1")
IMAGES = 4000
CHANCE = 1e-3
"""The draws are fixed, so that a test either passes always or never."""


@pytest.fixture(scope="module")
def drawn() -> list[list[DrawnOperation]]:
    return [draw_operations(MAE, generator) for generator in numpy_streams(3, "rand augment", range(IMAGES))]


def test_two_layers_apply_each_with_half_probability(drawn: list[list[DrawnOperation]]) -> None:
    counts = Counter(map(len, drawn))
    observed = [counts[number] for number in range(3)]
    expected = IMAGES * stats.binom.pmf(range(3), 2, 0.5)
    assert stats.chisquare(observed, expected).pvalue > CHANCE


def test_operations_are_drawn_uniformly_and_with_replacement(drawn: list[list[DrawnOperation]]) -> None:
    counts = Counter(operation.name for operations in drawn for operation in operations)
    assert stats.chisquare([counts[name] for name in OPERATIONS]).pvalue > CHANCE
    pairs = [operations for operations in drawn if len(operations) == 2]
    twice = sum(first.name == second.name for first, second in pairs)
    assert stats.binomtest(twice, len(pairs), 1 / len(OPERATIONS)).pvalue > CHANCE


@pytest.mark.parametrize(("name", "largest"), [("Rotate", 30), ("ShearX", 0.3), ("TranslateYRel", 0.45)])
def test_magnitudes_are_normal_and_cut_at_10(name: str, largest: float, drawn: list[list[DrawnOperation]]) -> None:
    arguments = np.array([item.argument for operations in drawn for item in operations if item.name == name])
    magnitudes = np.abs(arguments) / largest * 10
    at_most = np.isclose(magnitudes, 10)
    assert stats.binomtest(int(at_most.sum()), len(magnitudes), stats.norm.sf(2)).pvalue > CHANCE
    below = stats.truncnorm(-np.inf, 2, loc=9, scale=0.5)
    assert stats.kstest(magnitudes[~at_most], below.cdf).pvalue > CHANCE
    assert stats.binomtest(int((arguments > 0).sum()), len(arguments)).pvalue > CHANCE


def test_whole_arguments_have_the_probabilities_of_their_intervals() -> None:
    """Posterize keeps 1 bit for magnitudes of 7.5 … 10, and none at 10. Others are below 1 in 1,000."""
    policy = RandAugmentPolicy(9, 0.5, layers=60, probability=1.0)
    drawn = [
        item.argument
        for generator in numpy_streams(5, "bits", range(400))
        for item in draw_operations(policy, generator)
        if item.name == "PosterizeIncreasing"
    ]
    counts = Counter(drawn)
    bounds = stats.norm(9, 0.5).cdf([5, 7.5, 10])
    expected = np.diff([*bounds, 1.0])
    assert expected.sum() == pytest.approx(1)
    observed = [counts[2], counts[1], counts[0]]
    assert sum(observed) == len(drawn) > 1000
    for number, probability in zip(observed, expected, strict=True):
        assert stats.binomtest(number, len(drawn), probability).pvalue > CHANCE


def test_interpolations_are_drawn_evenly_or_always_bicubic(drawn: list[list[DrawnOperation]]) -> None:
    counts = Counter(item.resampling for operations in drawn for item in operations)
    assert stats.chisquare([counts[kind] for kind in RANDOM]).pvalue > CHANCE
    always = RandAugmentPolicy(9, 0.5, layers=3, probability=1.0)
    for generator in numpy_streams(3, "rand augment", range(50)):
        assert {item.resampling for item in draw_operations(always, generator, BICUBIC)} == set(BICUBIC)


def test_the_policy_sets_layers_probability_and_a_fixed_magnitude() -> None:
    always, never = RandAugmentPolicy(6, 0.0, 5, 1.0), RandAugmentPolicy(6, 0.0, 5, 0.0)
    arguments = set()
    for generator in numpy_streams(0, "fixed", range(100)):
        operations = draw_operations(always, generator)
        assert len(operations) == 5
        arguments |= {abs(item.argument) for item in operations if item.name == "Rotate"}
    assert arguments == {18.0}
    for generator in numpy_streams(0, "fixed", range(100)):
        assert draw_operations(never, generator) == []


def test_operations_are_applied_in_order() -> None:
    """Inverting and adding to the dark half do not commute."""
    image = Image.fromarray(photo(20, 10))
    invert = DrawnOperation("Invert", 0.0, BICUBIC[0])
    add = DrawnOperation("SolarizeAdd", 60.0, BICUBIC[0])
    levels = np.asarray(image).astype(int)
    inverted = 255 - levels
    added = np.where(levels < 128, levels + 60, levels)
    fill = (0, 0, 0)
    first = np.where(inverted < 128, inverted + 60, inverted)
    assert np.array_equal(np.asarray(apply_operations(image, [invert, add], fill)), first)
    assert np.array_equal(np.asarray(apply_operations(image, [add, invert], fill)), 255 - added)
    assert apply_operations(image, [], fill) is image

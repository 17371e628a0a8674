"""Boxes of random erasing against their joint law, worked out on a grid, and the noise inside of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from causalfusion_platform.data.augment.box import Box
from causalfusion_platform.data.augment.erasing import draw_box, erase
from causalfusion_platform.data.augment.streams import numpy_stream, numpy_streams

IMAGES = 4000
CHANCE = 1e-3
"""The draws are fixed, so that a test either passes always or never."""


def boxes(probability: float, height: int, width: int) -> list[Box]:
    drawn = [
        draw_box(generator, probability, height, width) for generator in numpy_streams(1, "box", range(IMAGES))
    ]
    return [box for box in drawn if box is not None]


def law_of_sides(height: int, width: int) -> dict[tuple[int, int], float]:
    """Probabilities of (rows, columns): area and log aspect are uniform, and boxes smaller than the image."""
    grid = (np.arange(1000) + 0.5) / 1000
    area = (0.02 + (1 / 3 - 0.02) * grid)[:, None] * height * width
    aspect = np.exp(np.log(0.3) + (np.log(1 / 0.3) - np.log(0.3)) * grid)
    rows, columns = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (rows < height) & (columns < width)
    counts = np.bincount((rows * 100 + columns)[fits].astype(int)) / fits.sum()
    return {divmod(int(sides), 100): float(counts[sides]) for sides in np.flatnonzero(counts)}


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.9, 1.0])
def test_images_are_erased_with_the_probability(probability: float) -> None:
    assert stats.binomtest(len(boxes(probability, 32, 32)), IMAGES, probability).pvalue > CHANCE


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 4), (7, 12)])
def test_sides_have_their_joint_law(height: int, width: int) -> None:
    counts = Counter((box.bottom - box.top, box.right - box.left) for box in boxes(1.0, height, width))
    law = law_of_sides(height, width)
    assert counts.keys() <= law.keys()
    common = [sides for sides in law if law[sides] * IMAGES >= 5]
    observed = [counts[sides] for sides in common]
    expected = [law[sides] * IMAGES for sides in common]
    rest = IMAGES - sum(expected)
    assert stats.chisquare([*observed, IMAGES - sum(observed) + 5], [*expected, rest + 5]).pvalue > CHANCE


def test_places_are_uniform_and_boxes_lie_inside() -> None:
    drawn = boxes(1.0, 32, 20)
    for box in drawn:
        assert 0 <= box.top <= box.bottom <= 32 and 0 <= box.left <= box.right <= 20
        assert 0.02 * 640 * 0.7 < box.area < 640 / 3 * 1.3
    uniform = numpy_stream(0, "spread")  # spreads whole numbers evenly over [0, 1]
    for first, last, side in (("top", "bottom", 32), ("left", "right", 20)):
        free = np.array([side - getattr(box, last) + getattr(box, first) + 1 for box in drawn])
        places = np.array([getattr(box, first) for box in drawn])
        assert stats.kstest((places + uniform.random(len(drawn))) / free, "uniform").pvalue > CHANCE


def test_an_image_of_one_row_has_no_box_that_fits() -> None:
    """A box of one row is as high as the image, and one of none is rare there: √(area · aspect) < 1/2."""
    for box in boxes(1.0, 1, 10):
        assert box.area == 0


@given(st.integers(0, 1000), st.sampled_from([np.float32, np.float16]))
def test_only_the_box_changes(position: int, kind: type[np.floating]) -> None:
    generator = numpy_stream(0, "image", position)
    image = generator.standard_normal((3, 9, 11)).astype(kind)
    before = image.copy()
    box = draw_box(generator, 1.0, 9, 11)
    assert box is not None
    erase(image, box, generator)
    changed = (image != before).all(0)
    expected = np.zeros((9, 11), bool)
    for row in range(box.top, box.bottom):
        for column in range(box.left, box.right):
            expected[row, column] = True
    assert np.array_equal(changed, expected)
    assert changed.sum() == box.area
    assert image.dtype == kind


def test_noise_is_normal_by_channel_and_not_repeated() -> None:
    mean, std = np.array([-1, 0, 2], np.float32)[:, None, None], np.array([0.5, 1, 3], np.float32)[:, None, None]
    image = np.zeros((3, 60, 60), np.float32)
    erase(image, Box(0, 60, 0, 60), numpy_stream(4, "noise"), mean, std)
    for channel in range(3):
        law = stats.norm(mean[channel].item(), std[channel].item())
        assert stats.kstest(image[channel].ravel(), law.cdf).pvalue > CHANCE
    assert len(np.unique(image)) > 0.99 * image.size

"""Random crops against their joint law, resizing against sums in numpy, and the coin of the flip."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from tests.platform.conftest import description_of, small_rows
from tests.platform.data.pictures import photo
from tests.platform.data.test_crop import keys, resampled

from causalfusion_platform.data.augment.box import Box
from causalfusion_platform.data.augment.crop_flip import (
    cut_and_resize,
    draw_crop,
    evaluation_crop,
    is_mirrored,
    mirror,
)
from causalfusion_platform.data.augment.streams import numpy_stream, numpy_streams
from causalfusion_platform.data.read import Dataset, read_window
from causalfusion_platform.data.shards import write_shards

IMAGES = 4000
CHANCE = 1e-3
"""The draws are fixed, so that a test either passes always or never."""


def boxes(width: int, height: int, scale: tuple[float, float] = (0.08, 1.0)) -> list[Box]:
    streams = numpy_streams(1, "crop", range(IMAGES))
    return [draw_crop(generator, width, height, scale) for generator in streams]


@pytest.mark.parametrize(
    ("width", "height", "scale"), [(8, 8, (0.08, 1.0)), (12, 7, (0.08, 1.0)), (9, 9, (0.5, 0.7))]
)
def test_sides_have_their_joint_law(width: int, height: int, scale: tuple[float, float]) -> None:
    """The chance that none of ten tries fits is below 1e-4 here, and left out."""
    grid = (np.arange(1000) + 0.5) / 1000
    area = (scale[0] + (scale[1] - scale[0]) * grid)[:, None] * height * width
    aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * grid)
    columns, rows = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (rows <= height) & (columns <= width)
    assert (1 - fits.mean()) ** 10 < 1e-4
    counts = np.bincount((rows * 100 + columns)[fits].astype(int)) / fits.sum() * IMAGES
    law = {divmod(int(sides), 100): float(counts[sides]) for sides in np.flatnonzero(counts)}
    drawn = Counter((box.bottom - box.top, box.right - box.left) for box in boxes(width, height, scale))
    assert drawn.keys() <= law.keys()
    common = [item for item in law if law[item] >= 5]
    observed, expected = [drawn[item] for item in common], [law[item] for item in common]
    rest = (IMAGES - sum(observed) + 5, IMAGES - sum(expected) + 5)
    assert stats.chisquare([*observed, rest[0]], [*expected, rest[1]]).pvalue > CHANCE


def test_places_are_uniform() -> None:
    drawn, spread = boxes(40, 33), numpy_stream(0, "spread")
    for first, last, side in (("top", "bottom", 33), ("left", "right", 40)):
        free = np.array([side - getattr(box, last) + getattr(box, first) + 1 for box in drawn])
        places = np.array([getattr(box, first) for box in drawn])
        assert stats.kstest((places + spread.random(len(drawn))) / free, "uniform").pvalue > CHANCE


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_crops_lie_inside(width: int, height: int, position: int) -> None:
    box = draw_crop(numpy_stream(0, "crop", position), width, height, (0.08, 1.0))
    assert 0 <= box.top < box.bottom <= height and 0 <= box.left < box.right <= width


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (1, 400, Box(199, 200, 0, 1)),
        (10, 4000, Box(1993, 2006, 0, 10)),
        (4000, 10, Box(0, 10, 1993, 2006)),
    ],
)
def test_a_thin_image_gives_its_middle(width: int, height: int, box: Box) -> None:
    """No area of 8% fits. The middle has a ratio of sides of 3:4 or 4:3, rounded."""
    assert set(boxes(width, height)[:50]) == {box}


def close(result: Image.Image, expected: NDArray[np.float64]) -> None:
    """A level apart at less than 1% of the values, as sums in double precision are from Pillow's weights."""
    difference = np.abs(np.asarray(result) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("box", [Box(3, 50, 10, 70), Box(0, 12, 80, 96), Box(20, 44, 5, 29)])
def test_the_part_alone_is_resized_bicubically(box: Box) -> None:
    """Pixels outside of the box have no weight."""
    pixels = photo()
    rows, columns = box.slices
    close(cut_and_resize(Image.fromarray(pixels), box, 24), resampled(pixels[rows, columns], 24, 24, keys))


@pytest.mark.parametrize(
    ("width", "height", "size", "resized"),
    [
        (96, 80, 28, (38, 32)),  # 96 · 32/80 = 38.4
        (80, 96, 28, (32, 38)),
        (50, 50, 35, (40, 40)),
        (300, 240, 224, (320, 256)),
    ],
)
def test_evaluation_takes_the_centre_of_the_resized_image(
    width: int, height: int, size: int, resized: tuple[int, int]
) -> None:
    pixels = photo(width, height)
    expected = resampled(pixels, *resized, keys)
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    close(evaluation_crop(Image.fromarray(pixels), size), expected[top : top + size, left : left + size])


def test_evaluation_without_a_margin_and_at_the_right_size_only_cuts() -> None:
    pixels = photo(40, 32)
    result = evaluation_crop(Image.fromarray(pixels), 32, 1.0)
    assert np.array_equal(np.asarray(result), pixels[:, 4:36])


def test_mirror_images_are_those_that_the_stream_of_latents_takes(tmp_path: Path) -> None:
    """Latents of the test's rows are positive, and negative for the mirror image."""
    rows = small_rows(50, flip=True)
    manifest = write_shards(rows, description_of(rows), tmp_path / "shards", rows_per_shard=50, rows_per_group=10)
    data = Dataset(tmp_path / "shards", manifest, seed=9, window_rows=20, flip=True)
    for window in data.windows(30, 130):
        latents = read_window(data, window)["latent"]
        mirrored = [bool((latent < 0).any()) for latent in latents]
        assert mirrored == [is_mirrored(9, window.position + row) for row in range(len(latents))]
        assert len(set(mirrored)) == 2


def test_mirror() -> None:
    pixels = photo(7, 5)
    assert np.array_equal(np.asarray(mirror(Image.fromarray(pixels))), pixels[:, ::-1])

"""The centred crop against box averages and bicubic sums worked out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.platform.data.pictures import photo

from causalfusion_platform.data.crop import center_crop, enlarged_size

Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def crop(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return center_crop(Image.fromarray(pixels), size)


def box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < 0.5, 1.0, 0.0)


def keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = −1/2."""
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def resampled(pixels: NDArray[Any], width: int, height: int, kernel: Kernel) -> NDArray[Any]:
    """Weigh pixels by a kernel as wide as the factor of shrinking, along rows, then columns; round each time."""
    for axis, length in ((1, width), (0, height)):
        old = pixels.shape[axis]
        centres = (np.arange(length) + 0.5) * old / length - 0.5
        weights = kernel(np.abs(np.arange(old) - centres[:, None]) / max(old / length, 1.0))
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels.astype(np.float64), (1, axis)), 0, axis)
        pixels = np.clip(np.floor(pixels + 0.5), 0, 255)
    return pixels


def cut(pixels: NDArray[Any], size: int) -> NDArray[Any]:
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (65, 64), (64, 69), (91, 64), (64, 127)])
def test_an_image_of_the_right_shorter_side_is_only_cut(width: int, height: int) -> None:
    pixels = photo(width, height)
    assert np.array_equal(crop(pixels, 64), cut(pixels, 64))


@pytest.mark.parametrize(("halvings", "width", "height"), [(1, 128, 160), (2, 300, 256), (3, 512, 520)])
def test_sides_are_halved_by_box_averages_while_they_are_twice_the_crop(
    halvings: int, width: int, height: int
) -> None:
    """Averages of two bytes, halves rounded up, are exact."""
    expected = pixels = photo(width, height, "flower")
    for _ in range(halvings):
        expected = resampled(expected, expected.shape[1] // 2, expected.shape[0] // 2, box)
    assert np.array_equal(crop(pixels, 64), cut(expected, 64))


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (127, 100, 64),
        (64, 100, 63),
        (155, 143, 64),
        (303, 263, 64),
        (50, 70, 64),
        (20, 31, 64),
        (1, 1, 8),
        (90, 77, 31),
    ],
)
def test_the_rest_of_the_way_is_bicubic(width: int, height: int, size: int) -> None:
    """Sums in double precision against Pillow's weights of 22 bits: a level apart at less than 1% of the values."""
    pixels: NDArray[Any] = photo(width, height)
    expected = pixels
    while min(expected.shape[:2]) >= 2 * size:
        expected = resampled(expected, expected.shape[1] // 2, expected.shape[0] // 2, box)
    scale = size / min(expected.shape[:2])
    height, width, _ = (round(side * scale) for side in expected.shape)
    expected = cut(resampled(expected, width, height, keys), size)
    difference = np.abs(crop(pixels, size) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_one_pixel_of_odd_margins_is_cut_right_and_below() -> None:
    columns = np.broadcast_to(np.arange(13, dtype=np.uint8)[None, :, None], (8, 13, 3))
    assert crop(np.ascontiguousarray(columns), 8)[0, :, 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert crop(np.ascontiguousarray(columns.transpose(1, 0, 2)), 8)[:, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]


def test_the_shorter_side_becomes_the_crop_whatever_the_floats() -> None:
    for size in (1, 7, 32, 64, 100, 256, 512):
        for short in range(1, 700):
            width, height = enlarged_size(short, 3 * short, size)
            assert (width, height) == (size, 3 * size)


def test_other_modes_are_refused_and_the_result_is_its_own_array() -> None:
    with pytest.raises(ValueError, match="CMYK"):
        center_crop(Image.new("CMYK", (8, 8)), 8)
    result = crop(photo(91, 64), 64)
    assert result.dtype == np.uint8
    assert result.flags.owndata and result.flags.c_contiguous and result.flags.writeable

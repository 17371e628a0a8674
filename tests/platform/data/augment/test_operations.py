"""RandAugment's operations against their definitions in numpy, and their arguments against the published ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.platform.data.pictures import photo

from causalfusion_platform.data.augment.operations import OPERATIONS, Resampling

Pixels = NDArray[np.uint8]
FILL = (124, 116, 104)
BILINEAR: Resampling = Image.Resampling.BILINEAR
BICUBIC: Resampling = Image.Resampling.BICUBIC


def applied(name: str, pixels: Pixels, argument: float, resampling: Resampling = BILINEAR) -> Pixels:
    return np.asarray(OPERATIONS[name].apply(Image.fromarray(pixels), argument, FILL, resampling))


def every_level() -> Pixels:
    """256 levels in each channel, in another order each."""
    levels = np.arange(256, dtype=np.uint8)
    return np.stack([levels, levels[::-1], np.roll(levels, 77)], -1).reshape(16, 16, 3)


@pytest.mark.parametrize(
    ("name", "at_9", "at_10"),
    [
        ("Rotate", (27, -27), (30, -30)),
        ("PosterizeIncreasing", (1, 1), (0, 0)),
        ("SolarizeIncreasing", (26, 26), (0, 0)),
        ("SolarizeAdd", (99, 99), (110, 110)),
        ("ColorIncreasing", (1.81, 0.19), (1.9, 0.1)),
        ("ContrastIncreasing", (1.81, 0.19), (1.9, 0.1)),
        ("BrightnessIncreasing", (1.81, 0.19), (1.9, 0.1)),
        ("SharpnessIncreasing", (1.81, 0.19), (1.9, 0.1)),
        ("ShearX", (0.27, -0.27), (0.3, -0.3)),
        ("ShearY", (0.27, -0.27), (0.3, -0.3)),
        ("TranslateXRel", (0.405, -0.405), (0.45, -0.45)),
        ("TranslateYRel", (0.405, -0.405), (0.45, -0.45)),
    ],
)
def test_arguments_at_magnitude_9_and_10(name: str, at_9: tuple[float, float], at_10: tuple[float, float]) -> None:
    argument = OPERATIONS[name].argument
    assert [argument(0.9, sign) for sign in (1, -1)] == pytest.approx(at_9)
    assert [argument(1.0, sign) for sign in (1, -1)] == pytest.approx(at_10)


@pytest.mark.parametrize(
    "name", [name for name in OPERATIONS if name not in ("AutoContrast", "Equalize", "Invert")]
)
def test_magnitude_0_changes_nothing_but_the_low_bits(name: str) -> None:
    pixels = photo(40, 30)
    result = applied(name, pixels, OPERATIONS[name].argument(0.0, -1), BICUBIC)
    expected = pixels & 0xF0 if name == "PosterizeIncreasing" else pixels
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("bits", range(5))
def test_posterize_keeps_the_highest_bits(bits: int) -> None:
    pixels = every_level()
    expected = pixels // 2 ** (8 - bits) * 2 ** (8 - bits) if bits else np.zeros_like(pixels)
    assert np.array_equal(applied("PosterizeIncreasing", pixels, bits), expected)


@pytest.mark.parametrize("threshold", [0, 26, 128, 255, 256])
def test_solarize_inverts_levels_from_the_threshold_on(threshold: int) -> None:
    pixels = every_level()
    expected = np.where(pixels >= threshold, 255 - pixels, pixels)
    assert np.array_equal(applied("SolarizeIncreasing", pixels, threshold), expected)


@pytest.mark.parametrize("add", [0, 60, 99, 110])
def test_solarize_add_brightens_the_lower_half(add: int) -> None:
    pixels = every_level()
    expected = np.where(pixels < 128, np.minimum(pixels.astype(int) + add, 255), pixels)
    assert np.array_equal(applied("SolarizeAdd", pixels, add), expected)


def test_invert() -> None:
    assert np.array_equal(applied("Invert", every_level(), 0), 255 - every_level())


def test_autocontrast_stretches_each_channel_to_all_levels() -> None:
    pixels = (photo(40, 30) // 2 + np.array([10, 60, 90])).astype(np.uint8)
    low, high = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
    expected = (pixels - low) * (255 / (high - low))
    result = applied("AutoContrast", pixels, 0)
    assert np.abs(result - expected).max() < 1 + 1e-9
    assert (result.min((0, 1)) == 0).all() and (result.max((0, 1)) >= 254).all()


def test_equalize_maps_a_level_to_the_share_of_pixels_below() -> None:
    pixels = photo(60, 50)
    result = applied("Equalize", pixels, 0)
    for channel in range(3):
        values = pixels[..., channel]
        top = (values == values.max()).sum()
        step = (values.size - top) // 255
        below = np.array([(values < level).sum() for level in range(256)])
        expected = np.minimum((below + step // 2) // step, 255)[values]
        assert np.array_equal(result[..., channel], expected)


def gray(pixels: Pixels) -> NDArray[Any]:
    """Luma of ITU-R 601-2, in fixed point."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    return np.asarray((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)


def blended(base: NDArray[Any], pixels: Pixels, factor: float) -> NDArray[Any]:
    return np.clip(base + np.float64(factor) * (pixels - base.astype(np.float64)), 0, 255)


def assert_cut_to_levels(result: Pixels, expected: NDArray[Any]) -> None:
    """Pillow leaves the fraction of a sum away. Its sums are in single precision."""
    assert (result <= expected + 1e-4).all()
    assert (result > expected - 1 - 1e-4).all()


@pytest.mark.parametrize("factor", [0.1, 0.19, 0.7, 1.3, 1.81, 1.9])
def test_enhancements_blend_with_black_mean_gray_or_a_smoothed_image(factor: float) -> None:
    pixels = photo(48, 40, "flower")
    assert_cut_to_levels(applied("BrightnessIncreasing", pixels, factor), blended(np.zeros(3), pixels, factor))
    luma = gray(pixels)
    mean = np.full(3, int(luma.mean() + 0.5))
    assert_cut_to_levels(applied("ContrastIncreasing", pixels, factor), blended(mean, pixels, factor))
    assert_cut_to_levels(applied("ColorIncreasing", pixels, factor), blended(luma[..., None], pixels, factor))


@pytest.mark.parametrize("factor", [0.1, 1.9])
def test_sharpness_blends_with_a_mean_that_weighs_the_middle_five_times(factor: float) -> None:
    pixels = photo(48, 40)
    inner = sum(
        pixels[1 + dy : 39 + dy, 1 + dx : 47 + dx].astype(float) * (5 if dx == dy == 0 else 1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    )
    smoothed = pixels.astype(float)  # the border stays
    smoothed[1:-1, 1:-1] = np.floor(np.asarray(inner) / 13 + 0.5)
    assert_cut_to_levels(applied("SharpnessIncreasing", pixels, factor), blended(smoothed, pixels, factor))


def triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 1, 1 - np.abs(x), 0)


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = −1, Pillow's for transformations."""
    x = np.abs(x)
    return np.where(x < 1, x**3 - 2 * x**2 + 1, np.where(x < 2, -(x**3) + 5 * x**2 - 8 * x + 4, 0))


def sampled(
    pixels: Pixels, x: NDArray[np.float64], y: NDArray[np.float64], kernel: Callable[[Any], Any]
) -> NDArray[np.float64]:
    """Sum pixels around each source point by a kernel; those beyond the border are as the nearest one."""
    height, width, _ = pixels.shape
    total = np.zeros((*x.shape, 3))
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            row, column = np.floor(y - 0.5).astype(int) + dy, np.floor(x - 0.5).astype(int) + dx
            weight = kernel(y - 0.5 - row) * kernel(x - 0.5 - column)
            total += weight[..., None] * pixels[row.clip(0, height - 1), column.clip(0, width - 1)]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside[..., None], total.clip(0, 255), FILL)


def sources(name: str, argument: float, width: int, height: int) -> tuple[Any, Any]:
    """Return the point that each pixel's centre is taken from."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    if name == "ShearX":
        return x + argument * y, y
    if name == "ShearY":
        return x, y + argument * x
    if name == "TranslateXRel":
        return x + argument * width, y
    if name == "TranslateYRel":
        return x, y + argument * height
    cosine, sine = math.cos(math.radians(argument)), math.sin(math.radians(argument))
    dx, dy = x - width / 2, y - height / 2
    return width / 2 + cosine * dx - sine * dy, height / 2 + sine * dx + cosine * dy


@pytest.mark.parametrize("resampling", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_affine_maps(name: str, sign: int, resampling: Resampling) -> None:
    pixels = photo(47, 36)
    argument = OPERATIONS[name].argument(0.87, sign)
    kernel = triangle if resampling == BILINEAR else cubic
    expected = sampled(pixels, *sources(name, argument, 47, 36), kernel)
    result = applied(name, pixels, argument, resampling)
    assert_cut_to_levels(result, expected)
    assert 0.05 < (result == FILL).all(-1).mean() < 0.5, "some of the image comes from outside"


@given(
    st.sampled_from([*OPERATIONS]), st.floats(0, 1), st.sampled_from([1, -1]), st.integers(1, 9), st.integers(1, 9)
)
def test_size_and_mode_stay_and_the_image_given_is_left_alone(
    name: str, share: float, sign: int, width: int, height: int
) -> None:
    pixels = np.random.default_rng(width).integers(256, size=(height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    operation = OPERATIONS[name]
    result = operation.apply(image, operation.argument(share, sign), FILL, BICUBIC)
    assert (result.size, result.mode) == (image.size, "RGB")
    assert np.array_equal(np.asarray(image), pixels)

"""Sample grids: every pixel of every tile is where it should be."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from causalfusion_platform.data.pixels import to_pixels
from causalfusion_platform.sampling.grid import sample_grid

NAMES = ["zero", "one", "a rather long name", "three"]


def pixels_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def gap_of(grid: Image.Image, rows: int, cell: int) -> int:
    """Return the space between tiles: as much as above the first row and below the last."""
    gap, rest = divmod(grid.height - rows * cell, rows + 1)
    assert rest == 0
    assert gap > 0
    return gap


def exact_images(count: int, channels: int, size: int) -> tuple[Tensor, npt.NDArray[np.uint8]]:
    """Return images and the pixels they stand for, made the other way round: (B, size, size, channels)."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    images = torch.from_numpy(pixels.astype(np.float64) / 127.5 - 1).permute(0, 3, 1, 2)
    return images.float(), pixels


def test_pixels_are_rounded_to_the_nearest() -> None:
    """Compare with exact fractions over [−1, 1] and beyond."""
    values = torch.linspace(-1.5, 1.5, 3001)
    pixels = to_pixels(values)
    assert pixels.dtype == torch.uint8
    for value, pixel in zip(values.tolist(), pixels.tolist(), strict=True):
        exact = (min(max(Fraction(value), Fraction(-1)), Fraction(1)) + 1) * Fraction(255, 2)
        assert abs(exact - pixel) <= Fraction(1, 2) + Fraction(1, 10**4)


def test_every_pixel_value_can_be_reached_and_returns() -> None:
    pixels = torch.arange(256)
    assert torch.equal(to_pixels(pixels / 127.5 - 1), pixels.to(torch.uint8))


def test_the_seventeen_levels_of_the_digits() -> None:
    levels = to_pixels(torch.arange(17) / 8 - 1).tolist()
    assert levels == [round(Fraction(255 * level, 16)) for level in range(17)]
    assert (levels[0], levels[-1]) == (0, 255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "cell"), [(8, 48), (8, 8), (5, 20)])
def test_tiles_are_exact(channels: int, size: int, cell: int) -> None:
    """A row per class that occurs, in the order of classes; samples in their own order from the left."""
    labels = torch.tensor([3, 0, 3, 2, 3, 0, 3])
    images, pixels = exact_images(len(labels), channels, size)
    grid = sample_grid(images, labels, NAMES, columns=3, cell=cell)
    found = pixels_of(grid)
    gap = gap_of(grid, 3, cell)
    margin = grid.width - 3 * (cell + gap)
    rows = {0: [1, 5], 2: [3], 3: [0, 2, 4]}  # the fourth 3 does not fit
    expected = np.full((grid.height, 3 * (cell + gap), 3), 255, np.uint8)
    for row, indices in enumerate(rows.values()):
        for column, index in enumerate(indices):
            enlarged = pixels[index].repeat(cell // size, axis=0).repeat(cell // size, axis=1)
            top, left = gap + row * (cell + gap), column * (cell + gap)
            expected[top : top + cell, left : left + cell] = enlarged  # gray spreads over the three channels
    assert grid.mode == "RGB"
    assert np.array_equal(found[:, margin:], expected)


def test_no_column_is_empty() -> None:
    labels = torch.tensor([3, 0, 3, 2, 3])
    images, _ = exact_images(len(labels), 1, 8)
    assert np.array_equal(
        pixels_of(sample_grid(images, labels, NAMES, columns=10)),
        pixels_of(sample_grid(images, labels, NAMES, columns=3)),
    )


def test_of_many_channels_the_first_three_are_drawn() -> None:
    images, _ = exact_images(2, 16, 8)
    labels = torch.tensor([0, 1])
    assert sample_grid(images, labels, NAMES).tobytes() == sample_grid(images[:, :3], labels, NAMES).tobytes()
    two = sample_grid(images[:, :2], labels, NAMES)
    assert two.tobytes() == sample_grid(images[:, :1], labels, NAMES).tobytes()


@pytest.mark.parametrize("cell", [16, 48, 96])
def test_names_stand_at_the_left_of_their_rows(cell: int) -> None:
    images, _ = exact_images(3, 1, 8)
    grid = sample_grid(images, torch.tensor([0, 2, 3]), NAMES, cell=cell)
    gap = gap_of(grid, 3, cell)
    ink = pixels_of(grid)[:, : grid.width - (cell + gap)].min(axis=2) < 128
    assert not ink[:, :2].any()
    assert not ink[:, -2:].any()  # the longest name ends before the tiles
    widths = []
    for row in range(3):
        part = ink[gap + row * (cell + gap) :][:cell]
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        assert abs((rows[0] + rows[-1] + 1) / 2 - cell / 2) < cell / 6
        widths.append(columns[-1] - columns[0])
    assert widths[1] == max(widths)  # the long name is the second row's


def test_only_the_classes_that_occur_have_rows() -> None:
    images, _ = exact_images(3, 1, 8)
    labels = torch.tensor([1, 1, 1])
    heights = [sample_grid(images, labels + extra, NAMES).height for extra in (0, torch.tensor([2, 0, 0]))]
    gap = gap_of(sample_grid(images, labels, NAMES), 1, 48)
    assert heights == [48 + 2 * gap, 2 * 48 + 3 * gap]

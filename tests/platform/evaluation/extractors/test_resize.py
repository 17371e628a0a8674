"""TensorFlow 1's bilinear resizing, against hand-made cases and loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from causalfusion_platform.evaluation.extractors.resize import resize_as_tf1

Array = npt.NDArray[np.float32]


def by_loops(image: Array, size: int) -> Array:
    """Resize (H, W) pixel by pixel, each step rounded to float32."""
    one = np.float32
    height, width = image.shape
    down, across = one(one(height) / one(size)), one(one(width) / one(size))
    result = np.empty((size, size), np.float32)
    for row in range(size):
        y = one(one(row) * down)
        y0 = int(np.floor(y))
        y1, dy = min(y0 + 1, height - 1), one(y - one(y0))
        for column in range(size):
            x = one(one(column) * across)
            x0 = int(np.floor(x))
            x1, dx = min(x0 + 1, width - 1), one(x - one(x0))
            top = one(image[y0, x0] + one(one(image[y0, x1] - image[y0, x0]) * dx))
            bottom = one(image[y1, x0] + one(one(image[y1, x1] - image[y1, x0]) * dx))
            result[row, column] = one(top + one(one(bottom - top) * dy))
    return result


def test_enlarging_by_hand() -> None:
    """Pixels lie at 0, ½, 1 and 1½ of the input; what is beyond the last one repeats it."""
    images = torch.tensor([[0.0, 100.0], [20.0, 40.0]])[None, None]
    expected = [
        [0.0, 50.0, 100.0, 100.0],
        [10.0, 40.0, 70.0, 70.0],
        [20.0, 30.0, 40.0, 40.0],
        [20.0, 30.0, 40.0, 40.0],
    ]
    assert resize_as_tf1(images, 4).tolist() == [[expected]]


def test_shrinking_by_hand() -> None:
    """Of 6 pixels, 4 are taken at 0, 1½, 3 and 4½: no more than two count, whatever lies between."""
    row = torch.tensor([0.0, 8.0, 16.0, 80.0, 96.0, 64.0])
    images = row.expand(1, 1, 6, 6)
    assert resize_as_tf1(images, 4)[0, 0, 2].tolist() == [0.0, 12.0, 80.0, 80.0]
    images = row[:, None].expand(1, 1, 6, 6)
    assert resize_as_tf1(images, 4)[0, 0, :, 1].tolist() == [0.0, 12.0, 80.0, 80.0]


@pytest.mark.parametrize(
    ("height", "width", "size"), [(5, 7, 9), (32, 32, 37), (64, 40, 23), (3, 1, 8), (50, 50, 49)]
)
def test_loops_give_the_same_bits(height: int, width: int, size: int) -> None:
    images = np.random.default_rng(height).integers(0, 256, (2, 3, height, width)).astype(np.float32)
    resized = resize_as_tf1(torch.from_numpy(images), size)
    assert (resized.shape, resized.dtype) == ((2, 3, size, size), torch.float32)
    for image, of_image in zip(images.reshape(6, height, width), resized.reshape(6, size, size), strict=True):
        np.testing.assert_array_equal(of_image.numpy(), by_loops(image, size))


def test_the_same_size_is_the_same_image() -> None:
    images = torch.rand(2, 1, 11, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_as_tf1(images, 11), images)

"""Augmentation of rows: its parts by hand in MAE's order, and independence of windows, workers and resuming."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.platform.conftest import description_of, small_rows
from tests.platform.data.pictures import photo

from causalfusion_platform.config.augment import AugmentConfig
from causalfusion_platform.data.augment.crop_flip import draw_crop, is_mirrored
from causalfusion_platform.data.augment.erasing import draw_box
from causalfusion_platform.data.augment.rand_augment import apply_operations, draw_operations
from causalfusion_platform.data.augment.streams import numpy_stream
from causalfusion_platform.data.augment.transforms import (
    FILL,
    AugmentLatents,
    AugmentPixels,
    evaluation_pixels,
    to_array,
)
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import Dataset, local_batches
from causalfusion_platform.data.shards import write_shards

MAES = "rand-m9-mstd0.5-inc1"
PIXELS = AugmentConfig(mode="pixels", rand_augment=MAES)
ROWS = 23
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


PHOTO = photo()


def image() -> Image.Image:
    return Image.fromarray(PHOTO)


def test_an_image_against_its_parts_done_by_hand() -> None:
    """Crop, flip, RandAugment, then noise of ImageNet's mean and deviation in units of [−1, 1]."""
    augment, policy = AugmentPixels(PIXELS, 24, seed=4), PIXELS.policy
    assert policy is not None
    assert tuple(round(255 * mean) for mean in IMAGENET_MEAN) == FILL
    erased_rows = 0
    for position in range(60):
        box = draw_crop(numpy_stream(4, "crop", position), 96, 80, (0.08, 1.0))
        part = np.asarray(image())[box.top : box.bottom, box.left : box.right]
        drawn = Image.fromarray(part).resize((24, 24), Image.Resampling.BICUBIC)
        if is_mirrored(4, position):
            drawn = Image.fromarray(np.ascontiguousarray(np.asarray(drawn)[:, ::-1]))
        drawn = apply_operations(drawn, draw_operations(policy, numpy_stream(4, "rand augment", position)), FILL)
        expected = np.asarray(drawn).transpose(2, 0, 1) / 127.5 - 1
        generator = numpy_stream(4, "erasing", position)
        if erased := draw_box(generator, 0.25, 24, 24):
            erased_rows += 1
            noise = generator.standard_normal(
                (3, erased.bottom - erased.top, erased.right - erased.left), np.float32
            )
            for channel in range(3):
                level = IMAGENET_MEAN[channel] + IMAGENET_STD[channel] * noise[channel]
                expected[channel, erased.top : erased.bottom, erased.left : erased.right] = 2 * level - 1
        result = augment(image(), position)
        assert result.shape == (3, 24, 24) and result.dtype == np.float32
        assert np.abs(result - expected).max() < 1e-6
    assert erased_rows > 5


@given(st.integers(0, 10**9), st.integers(0, 5))
def test_an_image_depends_on_seed_and_position_alone(position: int, seed: int) -> None:
    augment = AugmentPixels(PIXELS.model_copy(update={"erasing": 0.0}), 16, seed)
    given_image = image()
    before = np.asarray(given_image).copy()
    result = augment(given_image, position)
    augment(given_image, position + 1)
    again = pickle.loads(pickle.dumps(augment))
    assert np.array_equal(result, again(image(), position))
    assert np.array_equal(np.asarray(given_image), before)
    assert result.min() >= -1 and result.max() <= 1


def test_the_interpolation_is_maes_where_asked_for() -> None:
    """Rotations by both interpolations differ, and no other draw does."""
    always = AugmentConfig(mode="pixels", rand_augment="rand-m9-n1-p1-inc1", erasing=0)
    bicubic = always.model_copy(update={"rand_augment_interpolation": "bicubic"})
    same = [
        np.array_equal(AugmentPixels(always, 16, 0)(image(), row), AugmentPixels(bicubic, 16, 0)(image(), row))
        for row in range(60)
    ]
    assert 30 < sum(same) < 60


def test_without_rand_augment_and_erasing_only_crop_and_flip_remain() -> None:
    plain = AugmentConfig(mode="pixels", erasing=0, crop_scale=(1.0, 1.0))
    square = np.ascontiguousarray(photo(80, 80))
    results = [AugmentPixels(plain, 80, 1)(Image.fromarray(square), row) for row in range(40)]
    whole = [row for row in range(40) if draw_crop(numpy_stream(1, "crop", row), 80, 80, (1.0, 1.0)).area == 6400]
    assert whole
    for row in whole:
        expected = square[:, ::-1] if is_mirrored(1, row) else square
        assert np.array_equal(results[row], to_array(Image.fromarray(np.ascontiguousarray(expected))))


def test_levels_map_to_the_ends_and_the_middle() -> None:
    levels = np.array([[[0, 255, 51]]], np.uint8)
    assert to_array(Image.fromarray(levels)).ravel().tolist() == pytest.approx([-1, 1, -0.6])


def test_evaluation_draws_nothing_and_other_modes_are_refused() -> None:
    result = evaluation_pixels(image(), 28)
    assert np.array_equal(result, evaluation_pixels(image(), 28))
    assert result.shape == (3, 28, 28) and result.dtype == np.float32
    with pytest.raises(ValueError, match="has mode L"):
        evaluation_pixels(image().convert("L"), 28)
    with pytest.raises(ValueError, match="has mode CMYK"):
        AugmentPixels(PIXELS, 28, 0)(image().convert("CMYK"), 0)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = small_rows(ROWS, flip=True)
    return write_shards(rows, description_of(rows), tmp_path / "shards", rows_per_shard=10, rows_per_group=4)


def stream_of(
    folder: Path,
    manifest: Manifest,
    batch_size: int,
    start: int,
    stop: int,
    *,
    window_rows: int = 8,
    probability: float = 0.6,
) -> tuple[list[int], NDArray[np.float32]]:
    transform = AugmentLatents(AugmentConfig(erasing=probability), 3)
    data = Dataset(folder, manifest, 3, window_rows, flip=True, transform=transform)
    batches = list(local_batches(data, batch_size=batch_size, start=start, stop=stop))
    rows = [int(row) for batch in batches for row in batch.row_ids]
    return rows, np.concatenate([batch.latents.numpy() for batch in batches])


def test_latents_do_not_depend_on_batches_or_resuming(tmp_path: Path, manifest: Manifest) -> None:
    folder = tmp_path / "shards"
    rows, latents = stream_of(folder, manifest, 8, 0, 96)
    for batch_size, start in ((3, 0), (8, 40), (7, 91)):
        others, again = stream_of(folder, manifest, batch_size, start, 96)
        assert others == rows[start:]
        assert np.array_equal(again, latents[start:])


def test_latents_are_erased_by_their_position_and_otherwise_as_stored(tmp_path: Path, manifest: Manifest) -> None:
    folder = tmp_path / "shards"
    _, stored = stream_of(folder, manifest, 8, 0, 96, probability=0.0)
    _, latents = stream_of(folder, manifest, 8, 0, 96)
    erased = 0
    for position in range(96):
        expected = stored[position].copy()
        generator = numpy_stream(3, "erasing", position)
        if box := draw_box(generator, 0.6, 2, 2):
            erased += box.area > 0
            noise = generator.standard_normal((1, box.bottom - box.top, box.right - box.left), np.float32)
            expected[:, box.top : box.bottom, box.left : box.right] = noise.astype(np.float16)
        assert np.array_equal(latents[position], expected)
    assert 10 < erased < 90

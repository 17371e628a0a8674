"""ADM's layout, written in parts as numpy writes it whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from causalfusion_platform.data.npz import read_images
from causalfusion_platform.sampling.adm import write_adm

Images = NDArray[np.uint8]
COUNT, HEIGHT, WIDTH = 23, 5, 7


def some_images(count: int = COUNT, height: int = HEIGHT, width: int = WIDTH) -> Images:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def in_parts(images: Images, size: int) -> Iterator[Images]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


LABELS = np.arange(COUNT) * 7 % 10


@pytest.mark.parametrize("size", [1, 4, 23, 100])
def test_the_bytes_are_those_of_numpy(tmp_path: Path, size: int) -> None:
    images = some_images()
    np.savez(tmp_path / "numpy.npz", images, LABELS)
    write_adm(tmp_path / "ours.npz", in_parts(images, size), len(LABELS), (HEIGHT, WIDTH), LABELS)
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0", "arr_1"]
        assert (file["arr_0"].dtype, file["arr_1"].dtype) == (np.uint8, np.int64)
        assert np.array_equal(file["arr_0"], images)
        assert np.array_equal(file["arr_1"], LABELS)
    assert len(list(tmp_path.iterdir())) == 2


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    images = some_images()
    write_adm(tmp_path / "ours.npz", [images[:, ::-1, :, ::-1]], len(LABELS), (HEIGHT, WIDTH), LABELS)
    with np.load(tmp_path / "ours.npz") as file:
        assert np.array_equal(file["arr_0"], images[:, ::-1, :, ::-1])


def damaged(images: Images) -> dict[str, Iterator[NDArray[np.generic]]]:
    return {
        "images were announced, got 22": in_parts(images[:-1], 4),
        "images were announced, got 46": iter([images, images]),
        r"got \(23, 7, 5, 3\) uint8": iter([images.swapaxes(1, 2)]),
        r"got \(23, 5, 7, 1\) uint8": iter([images[..., :1]]),
        r"got \(23, 5, 7, 3\) float64": iter([images / 2]),
    }


@pytest.mark.parametrize("message", list(damaged(some_images())))
def test_other_images_leave_the_old_file(tmp_path: Path, message: str) -> None:
    path = tmp_path / "ours.npz"
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        write_adm(path, damaged(some_images())[message], len(LABELS), (HEIGHT, WIDTH), LABELS)  # type: ignore[arg-type]
    assert path.read_text() == "before"
    assert [other.name for other in tmp_path.iterdir()] == ["ours.npz"]


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Images]:
        yield some_images()[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_adm(tmp_path / "ours.npz", broken(), len(LABELS), (HEIGHT, WIDTH), LABELS)
    assert not list(tmp_path.iterdir())


def test_neither_way_holds_all_images(tmp_path: Path) -> None:
    """48 MiB of images in parts of 1 MiB."""
    parts, side = 48, 64
    per_part = 2**20 // (side * side * 3)
    labels = np.zeros(parts * per_part, np.int64)
    tracemalloc.start()
    try:
        images = (np.full((per_part, side, side, 3), part, np.uint8) for part in range(parts))
        write_adm(tmp_path / "ours.npz", images, len(labels), (side, side), labels)
        seen = [int(some[0, 0, 0, 0]) for some in read_images(tmp_path / "ours.npz").batches(per_part)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == list(range(parts))
    assert peak < 6 * 2**20

"""ADM's layout, read whoever wrote it: what numpy wrote comes out as it was, all else is refused with a reason."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.malicious import MakesFolder

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.npz import holds_array, read_images

Images = NDArray[np.uint8]
COUNT, HEIGHT, WIDTH = 23, 5, 7
LABELS = np.arange(COUNT) * 7 % 10


def some_images(count: int = COUNT, channels: int = 3) -> Images:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, channels), dtype=np.uint8)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_images(path).batches(4))
    assert str(path) in str(caught.value)
    assert "wanted: a .npz in ADM's layout with images arr_0 (N, H, W, 3) uint8" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 5, 23, 1000])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_numpy_are_read(tmp_path: Path, save: Callable[..., None], size: int, channels: int) -> None:
    images = some_images(channels=channels)
    save(tmp_path / "numpy.npz", images, LABELS.astype(np.int32))
    opened = read_images(tmp_path / "numpy.npz")
    assert opened.shape == images.shape
    batches = list(opened.batches(size))
    assert [len(some) for some in batches] == [min(size, COUNT - at) for at in range(0, COUNT, size)]
    assert np.array_equal(np.concatenate(batches), images)
    assert all(some.dtype == np.uint8 and some.flags.writeable for some in batches)  # torch warns of others
    labels = opened.labels()
    assert labels is not None
    assert labels.dtype == np.int64
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize("stop", [1, 4, 22, 23, 99])
def test_reading_stops_where_it_is_told(tmp_path: Path, stop: int) -> None:
    np.savez(tmp_path / "numpy.npz", some_images())
    batches = list(read_images(tmp_path / "numpy.npz").batches(4, stop=stop))
    assert np.array_equal(np.concatenate(batches), some_images()[:stop])


def test_images_by_name_in_another_order_and_without_labels(tmp_path: Path) -> None:
    """As DiT writes them, and as ADM's reference batches have them, statistics first."""
    images = some_images()
    np.savez(tmp_path / "numpy.npz", mu=np.zeros(3), arr_0=np.asfortranarray(images), sigma=np.eye(3))
    opened = read_images(tmp_path / "numpy.npz")
    batches = list(opened.batches(4, stop=9))
    assert np.array_equal(np.concatenate(batches), images[:9])
    assert all(some.flags.writeable for some in batches)
    assert opened.labels() is None


def test_no_images_are_no_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "numpy.npz", some_images()[:0])
    assert list(read_images(tmp_path / "numpy.npz").batches(4)) == []


def test_arrays_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "numpy.npz", mu=np.zeros(3))
    assert holds_array(tmp_path / "numpy.npz", "mu")
    assert not holds_array(tmp_path / "numpy.npz", "arr_0")


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (some_images() / 2, "arr_0 is (23, 5, 7, 3) float64\n"),
        (some_images().astype(np.int8), "arr_0 is (23, 5, 7, 3) int8\n"),
        (some_images(channels=4), "arr_0 is (23, 5, 7, 4) uint8\n"),
        (some_images()[..., 0], "arr_0 is (23, 5, 7) uint8\n"),
        (some_images().transpose(0, 3, 1, 2), "arr_0 is (23, 3, 5, 7) uint8\n"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: NDArray[np.generic], part: str) -> None:
    np.savez(tmp_path / "numpy.npz", array)
    assert part in refusal(tmp_path / "numpy.npz")


def test_pickles_are_refused_and_not_opened(tmp_path: Path) -> None:
    trap = np.array([MakesFolder(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "images.npz", trap)
    assert "arr_0 is (1,) object" in refusal(tmp_path / "images.npz")
    np.savez(tmp_path / "labels.npz", some_images()[:1], trap)
    with pytest.raises(UserError, match=r"arr_1 is .* object; allowed"):
        read_images(tmp_path / "labels.npz").labels()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("labels", [np.zeros(COUNT), np.zeros(COUNT - 1, int), np.zeros((COUNT, 1), int)])
def test_labels_that_are_none(tmp_path: Path, labels: NDArray[np.generic]) -> None:
    np.savez(tmp_path / "numpy.npz", some_images(), labels)
    opened = read_images(tmp_path / "numpy.npz")
    with pytest.raises(UserError, match=r"arr_1 is .*; allowed: one label an image, \(23,\) whole numbers"):
        opened.labels()


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("arr_0")
    assert "arr_0 cannot be read: File is not a zip file" in refusal(tmp_path / "text.npz")
    np.save(tmp_path / "alone.npy", np.zeros(3))
    assert "arr_0 cannot be read" in refusal(tmp_path / "alone.npy")
    np.savez(tmp_path / "names.npz", images=some_images(), more=LABELS)
    assert "holds no arr_0 but images.npy, more.npy" in refusal(tmp_path / "names.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_noticed(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "numpy.npz"
    save(path, some_images(200))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "arr_0 cannot be read" in refusal(path)
    content = bytearray(whole)
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert "arr_0 cannot be read" in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_checksums_are_compared(tmp_path: Path, save: Callable[..., None]) -> None:
    """The one in the archive's directory is another; the images are whole."""
    path = tmp_path / "numpy.npz"
    save(path, some_images())
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 16] ^= 255
    path.write_bytes(content)
    assert "arr_0 cannot be read: Bad CRC" in refusal(path)


def save_raw(path: Path, shape: tuple[int, ...], content: bytes) -> None:
    """Write images with a header of our own."""
    header = io.BytesIO()
    fields: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("arr_0.npy", header.getvalue() + content)


def test_headers_that_are_not_true(tmp_path: Path) -> None:
    """One that promises 43 GB must not be believed: nothing of that size is made. One may leave bytes out, too."""
    save_raw(tmp_path / "true.npz", (4, 2, 2, 3), b"\1" * 48)
    assert np.concatenate(list(read_images(tmp_path / "true.npz").batches(3))).shape == (4, 2, 2, 3)
    save_raw(tmp_path / "large.npz", (4, 60_000, 60_000, 3), b"\1" * 48)
    assert "cannot be read: 48 bytes for (4, 60000, 60000, 3) uint8" in refusal(tmp_path / "large.npz")
    save_raw(tmp_path / "small.npz", (3, 2, 2, 3), b"\1" * 48)
    assert "cannot be read: 48 bytes for (3, 2, 2, 3) uint8" in refusal(tmp_path / "small.npz")

"""ADM's .npz files: images `arr_0`, uint8 (N, H, W, 3), labels `arr_1`, and statistics such as `mu`.

Images are read in parts, because 50,000 images of 256×256 pixels are 9.8 GB. Pickled objects are refused.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..config.errors import UserError

IMAGES, LABELS = "arr_0", "arr_1"
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions of reading a damaged `.npz`."""

_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_WANTED = (
    f"  wanted: a .npz in ADM's layout with images {IMAGES} (N, H, W, 3) uint8, as causalfusion generate writes it"
)
STATISTICS_WANTED = (
    f"  wanted: a .npz as ADM's evaluator takes it, with mu (F,) and sigma (F, F), perhaps mu_s and sigma_s, or "
    f"with images {IMAGES} (N, H, W, 3) uint8"
)

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class ImageFile:
    """Images in ADM's layout."""

    path: Path
    shape: tuple[int, int, int, int]
    """N, H, W and 3, or 1 for gray images."""

    def batches(self, size: int, *, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """Yield writable arrays of images (n, H, W, channels), `size` at a time, up to number `stop`.

        Only one batch is in memory, except for a file in Fortran order.

        Raises:
            UserError: the file is damaged.
        """
        count = self.shape[0] if stop is None else min(stop, self.shape[0])
        with _opened(self.path, IMAGES) as (member, shape, fortran, _):
            if fortran:  # the bytes of every image are spread over the whole file
                whole = np.frombuffer(member.read(), np.uint8).reshape(shape, order="F")
                yield from (np.array(whole[at : min(at + size, count)], order="C") for at in range(0, count, size))
                return
            for at in range(0, count, size):
                number = min(size, count - at)
                content = member.read(number * int(np.prod(shape[1:])))
                yield np.frombuffer(bytearray(content), np.uint8).reshape(number, *shape[1:])

    def labels(self) -> NDArray[np.int64] | None:
        """Return the labels (N,), or None without labels.

        Raises:
            UserError: `arr_1` is not one integer per image, or the file is damaged.
        """
        if not holds_array(self.path, LABELS):
            return None
        with _opened(self.path, LABELS) as (member, shape, _, dtype):
            if shape != self.shape[:1] or dtype.kind not in "iu":
                raise UserError(
                    f"{self.path}: {LABELS} is {_shaped(shape, dtype)}; allowed: one label an image, "
                    f"({self.shape[0]},) whole numbers"
                )
            return np.frombuffer(member.read(), dtype).astype(np.int64)


def read_images(path: Path) -> ImageFile:
    """Open images in ADM's layout, as written by `numpy.savez` or by `numpy.savez_compressed`.

    Raises:
        UserError: the file is missing or damaged, or its images are not uint8 (N, H, W, 3) or (N, H, W, 1).
    """
    with _opened(path, IMAGES) as (_, shape, _, dtype):
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
            raise UserError(f"{path}: {IMAGES} is {_shaped(shape, dtype)}\n{_WANTED}")
        return ImageFile(path, (shape[0], shape[1], shape[2], shape[3]))


def read_arrays(path: Path) -> Arrays:
    """Return the arrays of an .npz by name, without its images.

    Raises:
        UserError: the file is missing, damaged, or not an `.npz`.
    """
    if not path.is_file():
        raise UserError(f"no file {path}\n{STATISTICS_WANTED}")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array alone")
        with file:
            return {name: file[name] for name in file.files if name != IMAGES}
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read: {error}\n{STATISTICS_WANTED}") from error


def holds_array(path: Path, name: str) -> bool:
    """Return True if a readable .npz holds an array of this name."""
    return f"{name}.npy" in _names(path)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
    """Open an array of an .npz: the stream behind its header, its shape, Fortran order, and its type."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            version = npy.read_magic(member)
            if version not in _READ_HEADER:
                raise ValueError(f"version {version} of its header")
            shape, fortran, dtype = _READ_HEADER[version](member)
            size = archive.getinfo(f"{name}.npy").file_size - member.tell()
            # A header with another size is refused before any memory of that size is allocated.
            if not dtype.hasobject and size != dtype.itemsize * int(np.prod(shape, dtype=object)):
                raise ValueError(f"{size} bytes for {_shaped(shape, dtype)}")
            yield member, shape, fortran, dtype
    except KeyError:
        raise UserError(f"{path} holds no {name} but {', '.join(_names(path)) or 'nothing'}\n{_WANTED}") from None
    except FileNotFoundError:
        raise UserError(f"there is no file {path}\n{_WANTED}") from None
    except _DAMAGE as error:
        raise UserError(f"{path}: {name} cannot be read: {error}\n{_WANTED}") from error


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _shaped(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{shape} {dtype}"
